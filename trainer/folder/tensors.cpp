// Which files hold the tensors.
#include "trainer/folder/tensors.h"

#include <filesystem>
#include <set>
#include <stdexcept>
#include <system_error>

#include "data/files/input_file.h"

namespace sala {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kMostIndexBytes = 100'000'000;

// What cannot be looked at is there: opening it says why not.
bool is_there(const std::string& path) {
  std::error_code error;
  return fs::status(path, error).type() != fs::file_type::not_found;
}

std::string found_instead(const std::string& folder) {
  if (is_there(folder + "/pytorch_model.bin") ||
      is_there(folder + "/pytorch_model.bin.index.json")) {
    return "found only pytorch_model.bin; save the model with safe_serialization=True";
  }
  if (is_there(folder + "/adapter_config.json")) {
    return "found an adapter; merge it into its base model and save that";
  }
  return "found neither";
}

// The map of an index: tensor to file of this folder.
std::map<std::string, std::string> read_weight_map(const std::string& index) {
  const json content = read_json_file(index, kMostIndexBytes);
  if (!content.is_object() || !content.contains("weight_map") ||
      !content["weight_map"].is_object()) {
    throw std::runtime_error(index + ": weight_map: expected an object of tensor: file");
  }
  std::map<std::string, std::string> files;
  for (const auto& [name, shard] : content["weight_map"].items()) {
    const std::string file = shard.is_string() ? shard.get<std::string>() : "";
    if (file.empty() || file.find('\0') != file.npos || file != fs::path(file).filename()) {
      throw std::runtime_error(index + ": " + list_text({name}) +
                               ": expected a file of this folder");
    }
    files.emplace(name, file);
  }
  return files;
}

}  // namespace

std::string list_text(const std::vector<std::string>& list) {
  constexpr size_t kMostItems = 10, kMostBytes = 120;
  std::string text;
  for (size_t i = 0; i < std::min(list.size(), kMostItems); ++i) {
    std::string item = list[i].substr(0, kMostBytes);
    if (item.size() < list[i].size()) item += "…";
    for (char& c : item) {
      if (static_cast<unsigned char>(c) < ' ') c = ' ';
    }
    text += (i == 0 ? "" : ", ") + item;
  }
  if (list.size() > kMostItems)
    text += " and " + std::to_string(list.size() - kMostItems) + " more";
  return text;
}

FolderTensors::FolderTensors(const std::string& folder) {
  const std::string single = folder + "/model.safetensors";
  const std::string index = folder + "/model.safetensors.index.json";
  if (!is_there(single) && !is_there(index)) {
    throw std::runtime_error(folder + ": expected model.safetensors or " +
                             "model.safetensors.index.json, " + found_instead(folder));
  }
  if (is_there(index)) {
    add_index(folder, index);
  } else {
    add_file(single);
  }
}

std::vector<std::string> FolderTensors::names() const {
  std::vector<std::string> all;
  for (const auto& [name, file] : file_of_) all.push_back(name);
  return all;
}

at::Tensor FolderTensors::tensor(const std::string& name, at::Tensor& buffer) {
  const SafetensorsReader* file = file_of_.at(name);
  if (!open_ || &open_->reader() != file) open_.emplace(*file);
  return open_->tensor(name, buffer);
}

void FolderTensors::add_file(const std::string& path) {
  require_input_file(path);
  files_.emplace_back(path);
  for (const auto& [name, entry] : files_.back().entries()) {
    const auto [at, inserted] = file_of_.emplace(name, &files_.back());
    if (!inserted) {
      throw std::runtime_error(path + ": tensor " + list_text({name}) + " is also in " +
                               at->second->path());
    }
  }
}

void FolderTensors::add_index(const std::string& folder, const std::string& index) {
  const auto weight_map = read_weight_map(index);
  std::set<std::string> shards;
  for (const auto& [name, file] : weight_map) shards.insert(file);
  std::vector<std::string> absent;
  for (const std::string& shard : shards) {
    if (!is_there(folder + "/" + shard)) absent.push_back(shard);
  }
  if (!absent.empty()) {
    throw std::runtime_error(index + ": names files that are absent: " + list_text(absent));
  }
  // Loaders differ in which they take; left over from two ways of saving, they are two models.
  if (shards.count("model.safetensors") == 0 && is_there(folder + "/model.safetensors")) {
    throw std::runtime_error(index + ": does not name model.safetensors, which is there too: " +
                             "remove the one that does not belong to this model");
  }
  for (const std::string& shard : shards) add_file(folder + "/" + shard);
  for (const auto& [name, file] : weight_map) {
    if (!has(name) || fs::path(file_of_.at(name)->path()).filename().string() != file) {
      throw std::runtime_error(index + ": says that " + list_text({file}) + " holds " +
                               list_text({name}) + ", it does not");
    }
  }
}

}  // namespace sala
