// Import of Hugging Face folders: which files hold the tensors, and that they are exactly ours.
#include "trainer/hf_folder.h"

#include <ATen/core/grad_mode.h>

#include <deque>
#include <filesystem>
#include <map>
#include <set>
#include <stdexcept>

#include "data/atomic_file.h"
#include "data/safetensors.h"
#include "model/families.h"

namespace sala {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

json read_json(const std::string& path) {
  const std::string text = read_text_file(path);
  try {
    return json::parse(text);
  } catch (const json::exception& error) {
    const std::string what = error.what();  // "[json.exception.…] parse error at line 3, …"
    const size_t end = what.find("] ");
    throw std::runtime_error(
        path + ": not valid JSON: " + (end == what.npos ? what : what.substr(end + 2)));
  }
}

std::string join(const std::vector<std::string>& list) {
  std::string text;
  for (const std::string& item : list) text += (text.empty() ? "" : ", ") + item;
  return text;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

// The tensors of a folder, by name, over one or more open files.
class Checkpoint {
 public:
  explicit Checkpoint(const std::string& folder) {
    const std::string single = folder + "/model.safetensors";
    const std::string index = folder + "/model.safetensors.index.json";
    if (fs::exists(single)) {
      add_file(single);
    } else if (fs::exists(index)) {
      add_index(folder, index);
    } else {
      const bool old = fs::exists(folder + "/pytorch_model.bin") ||
                       fs::exists(folder + "/pytorch_model.bin.index.json");
      throw std::runtime_error(folder +
                               ": expected model.safetensors or model.safetensors.index.json, " +
                               (old ? "found only pytorch_model.bin; save the model with "
                                      "safe_serialization=True"
                                    : "found neither"));
    }
  }

  std::set<std::string> names() const {
    std::set<std::string> all;
    for (const auto& [name, file] : files_of_) all.insert(name);
    return all;
  }
  bool has(const std::string& name) const { return files_of_.count(name) > 0; }
  const SafetensorsEntry& entry(const std::string& name) const {
    return files_of_.at(name)->entries().at(name);
  }
  at::Tensor tensor(const std::string& name) const { return files_of_.at(name)->tensor(name); }

 private:
  void add_file(const std::string& path) {
    readers_.emplace_back(path);
    for (const auto& [name, entry] : readers_.back().entries()) {
      const auto [at, inserted] = files_of_.emplace(name, &readers_.back());
      if (!inserted) {
        throw std::runtime_error(path + ": tensor " + name + " is also in " + at->second->path());
      }
    }
  }

  void add_index(const std::string& folder, const std::string& index) {
    const json content = read_json(index);
    if (!content.is_object() || !content.contains("weight_map") ||
        !content["weight_map"].is_object()) {
      throw std::runtime_error(index + ": weight_map: expected an object of tensor: file");
    }
    std::set<std::string> shards;
    for (const auto& [name, shard] : content["weight_map"].items()) {
      const bool plain = shard.is_string() &&
                         shard.get<std::string>() == fs::path(shard.get<std::string>()).filename();
      if (!plain)
        throw std::runtime_error(index + ": " + name + ": expected a file of this folder");
      shards.insert(shard.get<std::string>());
    }
    std::vector<std::string> absent;
    for (const std::string& shard : shards) {
      if (!fs::exists(folder + "/" + shard)) absent.push_back(shard);
    }
    if (!absent.empty()) {
      throw std::runtime_error(index + ": names files that are absent: " + join(absent));
    }
    for (const std::string& shard : shards) add_file(folder + "/" + shard);
    for (const auto& [name, shard] : content["weight_map"].items()) {
      const std::string file = shard.get<std::string>();
      if (!has(name) || fs::path(files_of_.at(name)->path()).filename().string() != file) {
        throw std::runtime_error(index + ": says that " + file + " holds " + name +
                                 ", it does not");
      }
    }
  }

  std::deque<SafetensorsReader> readers_;  // a deque: its elements stay where they are
  std::map<std::string, const SafetensorsReader*> files_of_;
};

bool ends_with(const std::string& text, std::string_view end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Everything that is wrong with the folder, gathered before the first byte is copied.
struct Mismatches {
  std::vector<std::string> missing, unexpected, shapes, dtypes;

  void raise(const std::string& folder) const {
    std::string text;
    const auto add = [&](const char* what, const std::vector<std::string>& list) {
      if (!list.empty()) text += (text.empty() ? "" : "; ") + (what + join(list));
    };
    add("missing tensors: ", missing);
    add("unexpected tensors: ", unexpected);
    add("wrong shapes: ", shapes);
    add("unsupported dtypes (F32, F16 and BF16 are read): ", dtypes);
    if (!text.empty()) throw std::runtime_error(folder + ": " + text);
  }
};

void compare(const Checkpoint& checkpoint, const Entry& entry, Mismatches& found) {
  if (!checkpoint.has(entry.name)) {
    found.missing.push_back(entry.name);
    return;
  }
  const SafetensorsEntry& stored = checkpoint.entry(entry.name);
  if (stored.shape != entry.shape) {
    found.shapes.push_back(entry.name + " expected " + shape_text(entry.shape) + ", got " +
                           shape_text(stored.shape));
  }
  if (stored.dtype != "F32" && stored.dtype != "F16" && stored.dtype != "BF16") {
    found.dtypes.push_back(entry.name + " is " + stored.dtype);
  }
}

// Tensors that old files carry and no model needs: rotary buffers, and the copy that a tied head
// is.
bool is_harmless(const Checkpoint& checkpoint, const std::string& name, bool compare_values) {
  const std::string embedding = "model.embed_tokens.weight";
  if (ends_with(name, "rotary_emb.inv_freq")) return true;
  if (name != "lm_head.weight" || !checkpoint.has(embedding)) return false;
  const SafetensorsEntry &head = checkpoint.entry(name), &tied = checkpoint.entry(embedding);
  return head.dtype == tied.dtype && head.shape == tied.shape &&
         SafetensorsReader::can_read(head.dtype) &&
         (!compare_values || at::equal(checkpoint.tensor(name), checkpoint.tensor(embedding)));
}

// Throws where the folder's tensors are not exactly those of the layouts.
void check_tensors(const std::string& folder, const Checkpoint& checkpoint,
                   const std::vector<const Layout*>& layouts, bool compare_values) {
  Mismatches found;
  std::set<std::string> expected;
  for (const Layout* layout : layouts) {
    for (const Entry& entry : layout->entries) {
      TORCH_CHECK(expected.insert(entry.name).second,
                  "read_weights: expected each tensor in one part, ", entry.name, " is in two");
      compare(checkpoint, entry, found);
    }
  }
  for (const std::string& name : checkpoint.names()) {
    if (expected.count(name) > 0 || is_harmless(checkpoint, name, compare_values)) continue;
    const bool head = name == "lm_head.weight";
    found.unexpected.push_back(
        head ? name + " (config.json ties it to the embeddings, yet it differs)" : name);
  }
  found.raise(folder);
}

}  // namespace

ModelConfig read_model_config(const std::string& folder) {
  if (!fs::is_directory(folder)) {
    throw std::runtime_error(folder + ": expected a model folder, " +
                             (fs::exists(folder) ? "this is a file" : "there is none"));
  }
  const std::string path = folder + "/config.json";
  if (!fs::exists(path)) {
    throw std::runtime_error(folder +
                             ": expected a Hugging Face model folder, it has no config.json");
  }
  return parse_model_config(read_json(path), path);
}

void check_weights(const std::string& folder, const std::vector<Layout>& layouts) {
  std::vector<const Layout*> pointers;
  for (const Layout& layout : layouts) pointers.push_back(&layout);
  check_tensors(folder, Checkpoint(folder), pointers, false);
}

void read_weights(const std::string& folder, const std::vector<Weights*>& parts) {
  const Checkpoint checkpoint(folder);
  std::vector<const Layout*> layouts;
  for (const Weights* part : parts) layouts.push_back(&part->layout());
  check_tensors(folder, checkpoint, layouts, true);
  at::NoGradGuard no_grad;
  for (Weights* part : parts) {
    for (size_t i = 0; i < part->views().size(); ++i) {
      at::Tensor view = part->views()[i];
      view.copy_(checkpoint.tensor(part->layout().entries[i].name));
    }
  }
}

}  // namespace sala
