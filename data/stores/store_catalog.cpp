// The record behind data/stores/store_catalog.h.
#include "data/stores/store_catalog.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "data/files/atomic_file.h"
#include "data/files/hash.h"

namespace sala {
namespace {

constexpr size_t kHashDigits = 16;
constexpr size_t kMostCopies = 1024;  // of one path: nodes with copies of their own, and old times

std::string hash_of(const std::string& text) { return xxh3_64_hex(text.data(), text.size()); }

std::string dumped(const nlohmann::json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// A path may hold any bytes, JSON only UTF-8: what a line of the record calls the file. Two that
// differ in such bytes alone share it, and are told apart by their identities.
std::string key_of(const std::string& path) {
  return nlohmann::json::parse(dumped(path)).get<std::string>();
}

}  // namespace

StoreCatalog::StoreCatalog(std::string folder) : folder_(std::move(folder)) {
  const std::string path = folder_ + "/verified.jsonl";
  if (!std::filesystem::exists(path)) return;
  std::istringstream lines(read_text_file(path));
  for (std::string line; std::getline(lines, line);) {
    if (line.size() <= kHashDigits + 1) continue;
    const std::string text = line.substr(kHashDigits + 1);
    if (line.substr(0, kHashDigits) == hash_of(text)) add(line);
  }
}

StoreCatalog StoreCatalog::copy_of(const std::string& folder) {
  StoreCatalog catalog(folder);
  catalog.folder_.clear();
  return catalog;
}

std::string StoreCatalog::record_line(const std::string& path, const StoreFacts& facts) {
  const std::string text = dumped(
      nlohmann::json::array({path, facts.file.num_bytes, facts.file.changed_ns, facts.file.inode,
                             facts.tokenizer_hash, facts.checksum, facts.vocab_size, facts.eos_id,
                             facts.num_tokens, facts.num_documents, facts.has_loss_mask}));
  return hash_of(text) + " " + text;
}

void StoreCatalog::add(const std::string& line) {
  const nlohmann::json entry = nlohmann::json::parse(line.substr(kHashDigits + 1));
  StoreFacts facts;
  facts.file = {entry.at(1), entry.at(2), entry.at(3)};
  facts.tokenizer_hash = entry.at(4);
  facts.checksum = entry.at(5);
  facts.vocab_size = entry.at(6);
  facts.eos_id = entry.at(7);
  facts.num_tokens = entry.at(8);
  facts.num_documents = entry.at(9);
  facts.has_loss_mask = entry.at(10);
  std::vector<StoreFacts>& of_path = known_[entry.at(0).get<std::string>()];
  std::erase_if(of_path, [&](const StoreFacts& other) { return other.file == facts.file; });
  if (of_path.size() == kMostCopies) of_path.erase(of_path.begin());
  of_path.push_back(std::move(facts));
}

const StoreFacts* StoreCatalog::find(const std::string& path) const {
  const auto settled = settled_.find(path);
  return find(path, settled != settled_.end() ? settled->second : file_identity(path));
}

const StoreFacts* StoreCatalog::find(const std::string& path, const FileIdentity& file) const {
  const auto entry = known_.find(key_of(path));
  if (entry == known_.end()) return nullptr;
  for (const StoreFacts& facts : entry->second) {
    if (facts.file == file) return &facts;
  }
  return nullptr;
}

void StoreCatalog::save(const std::vector<std::string>& paths) const {
  std::string text;
  for (const std::string& path : paths) {
    const auto entry = known_.find(key_of(path));
    if (entry == known_.end()) continue;
    for (const StoreFacts& facts : entry->second) text += record_line(path, facts) + "\n";
  }
  std::filesystem::create_directories(folder_);
  write_file_atomically(folder_ + "/verified.jsonl", text);
}

std::string StoreCatalog::offsets_path(const std::string& fingerprint) const {
  return folder_.empty() ? "" : folder_ + "/" + fingerprint + ".offsets";
}

}  // namespace sala
