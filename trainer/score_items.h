// The finished items of the score stage, on disk one by one: what a kill cannot take back.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include <fmt/format.h>

namespace sala {

struct ScoreItem {
  int64_t document = 0, layer = 0;
  double plain = 0, recall = 0;  // mean KL, nats per token
};

// The file of one rank's finished items: one JSON line each, on disk before the next begins.
class ScoreLog {
 public:
  ScoreLog(const std::string& folder, int rank) : folder_(folder) {
    std::filesystem::create_directories(folder);
    const std::string path = fmt::format("{}/items-{:05}.jsonl", folder, rank);
    file_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (file_ < 0) throw std::runtime_error("cannot write " + path + ": " + strerror(errno));
  }
  ~ScoreLog() { ::close(file_); }
  ScoreLog(const ScoreLog&) = delete;
  ScoreLog& operator=(const ScoreLog&) = delete;

  void append(const ScoreItem& item, const std::string& key) {
    if (!std::isfinite(item.plain) || !std::isfinite(item.recall)) {
      throw std::runtime_error(
          fmt::format("the KL of document {} with layer {} swapped is not "
                      "finite: align longer, or at a lower lr",
                      item.document, item.layer));
    }
    const nlohmann::json value = {{"key", key},
                                  {"document", item.document},
                                  {"layer", item.layer},
                                  {"plain", item.plain},
                                  {"recall", item.recall}};
    // A line before it as well: what a kill tore stays a line of its own.
    const std::string line = fmt::format("\n{}\n", value.dump());
    if (::write(file_, line.data(), line.size()) != static_cast<ssize_t>(line.size()) ||
        ::fsync(file_) != 0) {
      throw std::runtime_error("cannot write a finished score to " + folder_ + ": " +
                               strerror(errno));
    }
  }

  // What all ranks of all attempts have finished for `key`; a torn last line is ignored.
  std::vector<ScoreItem> read(const std::string& key) const {
    std::vector<ScoreItem> items;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      std::ifstream file(entry.path());
      for (std::string line; std::getline(file, line);) {
        const auto j = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
        if (!j.is_object() || j.value("key", "") != key) continue;
        items.push_back({j.at("document"), j.at("layer"), j.at("plain"), j.at("recall")});
      }
    }
    return items;
  }

 private:
  std::string folder_;
  int file_ = -1;
};

}  // namespace sala
