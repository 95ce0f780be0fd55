// Lines and their hashes behind trainer/stages/score_items.h.
#include "trainer/stages/score_items.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "data/files/atomic_file.h"
#include "data/files/hash.h"

namespace sala {
namespace {

std::string file_of(const std::string& folder, int rank) {
  std::filesystem::create_directories(folder);
  return fmt::format("{}/items-{:05}.jsonl", folder, rank);
}

nlohmann::json to_json(const ScoreItem& item, const std::string& key) {
  return {{"key", key},
          {"document", item.document},
          {"layer", item.layer},
          {"plain", item.plain},
          {"recall", item.recall}};
}

std::string hash_of(const nlohmann::json& item) {
  const std::string text = item.dump();
  return xxh3_64_hex(text.data(), text.size());
}

std::optional<ScoreItem> parse(const std::string& line, const std::string& key) {
  auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return std::nullopt;
  try {
    const std::string hash = json.at("xxh3");
    const ScoreItem item{json.at("document"), json.at("layer"), json.at("plain"),
                         json.at("recall")};
    if (json.at("key") != key || hash != hash_of(to_json(item, key))) return std::nullopt;
    return item;
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;  // another shape than a line of ours
  }
}

}  // namespace

ScoreLog::ScoreLog(const std::string& folder, int rank)
    : folder_(folder), file_(file_of(folder, rank), O_WRONLY | O_CREAT | O_APPEND) {}

void ScoreLog::append(const ScoreItem& item, const std::string& key) {
  if (!std::isfinite(item.plain) || !std::isfinite(item.recall)) {
    throw std::runtime_error(
        fmt::format("the KL of document {} with layer {} swapped is not finite: align longer, or "
                    "at a lower lr",
                    item.document, item.layer));
  }
  nlohmann::json line = to_json(item, key);
  line["xxh3"] = hash_of(to_json(item, key));
  // A line before it as well: what a kill tore stays a line of its own.
  file_.write("\n" + line.dump() + "\n");
  file_.sync();
}

std::vector<ScoreItem> ScoreLog::read(const std::string& key, int64_t num_documents,
                                      int64_t num_layers) const {
  std::vector<ScoreItem> items;
  for (const std::string& name : names_in_folder(folder_)) {
    if (!name.starts_with("items-") || !name.ends_with(".jsonl")) continue;
    std::istringstream lines(read_text_file(folder_ + "/" + name));
    for (std::string line; std::getline(lines, line);) {
      const auto item = parse(line, key);
      const bool in_range = item && item->document >= 0 && item->document < num_documents &&
                            item->layer >= 0 && item->layer < num_layers;
      if (in_range) items.push_back(*item);
    }
  }
  return items;
}

}  // namespace sala
