// Lines and their hashes behind trainer/scores/item_log.h.
#include "trainer/scores/item_log.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <filesystem>
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

std::string hash_of(const nlohmann::json& item) {
  const std::string text = item.dump();
  return xxh3_64_hex(text.data(), text.size());
}

std::optional<nlohmann::json> parse(const std::string& line, const std::string& key) {
  auto item = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!item.is_object() || !item.contains("key") || !item.contains("xxh3")) return std::nullopt;
  const nlohmann::json hash = item.at("xxh3");
  item.erase("xxh3");
  if (item.at("key") != key || hash != hash_of(item)) return std::nullopt;
  return item;
}

}  // namespace

ItemLog::ItemLog(const std::string& folder, int rank)
    : folder_(folder), file_(file_of(folder, rank), O_WRONLY | O_CREAT | O_APPEND) {}

void ItemLog::append(nlohmann::json item, const std::string& key) {
  item["key"] = key;
  item["xxh3"] = hash_of(item);
  // A line before it as well: what a kill tore stays a line of its own.
  file_.write("\n" + item.dump() + "\n");
  file_.sync();
}

std::vector<nlohmann::json> ItemLog::read(const std::string& key) const {
  std::vector<nlohmann::json> items;
  for (const std::string& name : names_in_folder(folder_)) {
    if (!name.starts_with("items-") || !name.ends_with(".jsonl")) continue;
    std::istringstream lines(read_text_file(folder_ + "/" + name));
    for (std::string line; std::getline(lines, line);) {
      if (auto item = parse(line, key)) items.push_back(std::move(*item));
    }
  }
  return items;
}

}  // namespace sala
