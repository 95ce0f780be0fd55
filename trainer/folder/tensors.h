// The tensors of a Hugging Face folder, by name, over one or more safetensors files.
#pragma once

#include <ATen/ATen.h>

#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "data/files/safetensors.h"

namespace sala {

// Opens model.safetensors, or the shards that model.safetensors.index.json names. Throws
// std::runtime_error, one line, when neither is there, both are and disagree, a shard is absent or
// broken, or index and shards contradict each other.
class FolderTensors {
 public:
  explicit FolderTensors(const std::string& folder);

  const std::deque<SafetensorsReader>& files() const { return files_; }
  std::vector<std::string> names() const;  // sorted
  bool has(const std::string& name) const { return file_of_.count(name) > 0; }
  const SafetensorsEntry& entry(const std::string& name) const {
    return file_of_.at(name)->entries().at(name);
  }
  at::Tensor tensor(const std::string& name) const { return file_of_.at(name)->tensor(name); }
  // The same in `buffer` (data/files/safetensors.h), for whoever reads many tensors: neighbours
  // mostly lie in one file, so the last one's stays open.
  at::Tensor tensor(const std::string& name, at::Tensor& buffer);

 private:
  void add_file(const std::string& path);
  void add_index(const std::string& folder, const std::string& index);

  std::deque<SafetensorsReader> files_;  // a deque: its elements stay where they are
  std::map<std::string, const SafetensorsReader*> file_of_;
  std::optional<SafetensorsReader::Open> open_;
};

// "a, b, c" for a message: of a long list the first ten and how many more there are, of a long name
// its beginning, and nothing that would break the line.
std::string list_text(const std::vector<std::string>& list);

}  // namespace sala
