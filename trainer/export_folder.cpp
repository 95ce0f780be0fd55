// Export of the hybrid as a minicpm_sala folder. Everything is written into FOLDER.tmp, which gets
// its name last: a reader never sees half a model.
#include <cstdio>
#include <filesystem>
#include <map>
#include <stdexcept>

#include "data/atomic_file.h"
#include "data/safetensors.h"
#include "model/families.h"
#include "model/layouts.h"
#include "trainer/hf_folder.h"

namespace sala {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kBytesPerElement = 2;  // bf16

// What a tokenizer consists of, as the hub's folders name it.
const char* const kTokenizerFiles[] = {"tokenizer.json",
                                       "tokenizer.model",
                                       "tokenizer_config.json",
                                       "special_tokens_map.json",
                                       "added_tokens.json",
                                       "chat_template.jinja",
                                       "vocab.json",
                                       "merges.txt",
                                       "generation_config.json"};

std::string join(const std::vector<std::string>& list) {
  std::string text;
  for (const std::string& item : list) text += (text.empty() ? "" : "; ") + item;
  return text;
}

void check_target(const std::string& folder) {
  if (!fs::exists(folder)) return;
  if (!fs::is_directory(folder) || !fs::is_empty(folder)) {
    throw std::runtime_error(folder +
                             ": expected a new or empty folder for the export, this one "
                             "has content; choose another or remove it");
  }
}

// The tensors handed over must be those of the format, by name and shape: SGLang checks neither.
void check_parts(const ModelConfig& config, const std::vector<Layout>& parts) {
  std::map<std::string, std::vector<int64_t>> expected;
  for (const Layout& layout : model_layouts(config)) {
    for (const Entry& entry : layout.entries) expected.emplace(entry.name, entry.shape);
  }
  for (const Layout& part : parts) {
    for (const Entry& entry : part.entries) {
      const auto at = expected.find(entry.name);
      TORCH_CHECK(at != expected.end(), "export: expected the format's tensors once each, got ",
                  entry.name);
      TORCH_CHECK(at->second == entry.shape, "export: ", entry.name, ": expected shape ",
                  at::IntArrayRef(at->second), ", got ", at::IntArrayRef(entry.shape));
      expected.erase(at);
    }
  }
  TORCH_CHECK(expected.empty(), "export: expected every tensor of the format, ", expected.size(),
              " are missing, the first is ", expected.begin()->first);
}

// Fills shards in the order of the parts; a tensor is never split.
std::vector<std::vector<SafetensorsSpec>> plan_shards(const std::vector<Layout>& parts,
                                                      int64_t max_bytes) {
  std::vector<std::vector<SafetensorsSpec>> shards(1);
  int64_t num_bytes = 0;
  for (const Layout& part : parts) {
    for (const Entry& entry : part.entries) {
      const int64_t size = entry.num_elements() * kBytesPerElement;
      if (num_bytes + size > max_bytes && !shards.back().empty()) {
        shards.emplace_back();
        num_bytes = 0;
      }
      shards.back().push_back({entry.name, at::kBFloat16, entry.shape});
      num_bytes += size;
    }
  }
  return shards;
}

std::string shard_name(size_t index, size_t count) {
  if (count == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", index + 1, count);
  return name;
}

void write_weights(const std::string& folder, const std::vector<Layout>& parts, int64_t max_bytes,
                   const std::function<at::Tensor(const std::string&)>& tensor) {
  const auto finite = [&](const std::string& name) {
    at::Tensor t = tensor(name).to(at::kBFloat16);
    if (!t.isfinite().all().item<bool>()) {
      throw std::runtime_error("export: " + name + " holds NaN or infinity; nothing was written");
    }
    return t;
  };
  const auto shards = plan_shards(parts, max_bytes);
  json weight_map;
  int64_t total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string file = shard_name(i, shards.size());
    write_safetensors(folder + "/" + file, shards[i], finite);
    for (const SafetensorsSpec& spec : shards[i]) weight_map[spec.name] = file;
  }
  for (const Layout& part : parts) {
    for (const Entry& entry : part.entries) total += entry.num_elements() * kBytesPerElement;
  }
  if (shards.size() == 1) return;
  const json index = {{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
  write_file_atomically(folder + "/model.safetensors.index.json", index.dump(2) + "\n");
}

void copy_tokenizer(const std::string& from, const std::string& folder) {
  if (from.empty()) return;
  if (!fs::is_directory(from)) {
    throw std::runtime_error(from + ": expected the folder of the tokenizer, there is none");
  }
  for (const char* name : kTokenizerFiles) {
    const std::string file = from + "/" + name;
    if (fs::exists(file)) write_file_atomically(folder + "/" + name, read_text_file(file));
  }
}

void write_generation_config(const json& config, const std::string& folder) {
  const std::string path = folder + "/generation_config.json";
  if (fs::exists(path)) return;  // the source's own
  json out;
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"}) {
    if (!config[key].is_null()) out[key] = config[key];
  }
  out["transformers_version"] = config["transformers_version"];
  write_file_atomically(path, out.dump(2) + "\n");
}

std::vector<std::string> describe(const ExportVerdict& verdict) {
  std::vector<std::string> lines;
  const auto add = [&](const std::string& loader, const std::vector<std::string>& blockers) {
    lines.push_back(blockers.empty() ? loader + " loads it"
                                     : loader + " does not load it: " + join(blockers));
  };
  add("transformers (official modelling code, trust_remote_code)", verdict.transformers_blockers);
  add("SGLang", verdict.sglang_blockers);
  lines.insert(lines.end(), verdict.notes.begin(), verdict.notes.end());
  return lines;
}

// Removes the unfinished folder on every way out but the good one.
struct Unfinished {
  std::string folder;
  bool done = false;
  ~Unfinished() {
    std::error_code ignored;
    if (!done) fs::remove_all(folder, ignored);
  }
};

}  // namespace

std::vector<std::string> export_hybrid(const ModelConfig& config, const std::vector<Layout>& parts,
                                       const std::function<at::Tensor(const std::string&)>& tensor,
                                       const ExportOptions& options) {
  const ExportVerdict verdict = export_verdict(config);
  if (!verdict.refusals.empty()) {
    throw std::runtime_error(
        "export to " + options.folder +
        ": the minicpm_sala format cannot hold this model: " + join(verdict.refusals));
  }
  const std::string target = (fs::path(options.folder) / "").parent_path().string();
  check_target(target);
  check_parts(config, parts);
  Unfinished temporary{target + ".tmp"};
  fs::remove_all(temporary.folder);  // left by an export that was killed
  fs::create_directories(temporary.folder);
  const json config_json = hybrid_config_json(config);
  write_file_atomically(temporary.folder + "/config.json", config_json.dump(2) + "\n");
  copy_tokenizer(options.tokenizer_folder, temporary.folder);
  write_generation_config(config_json, temporary.folder);
  if (!options.model_card.empty()) {
    write_file_atomically(temporary.folder + "/README.md", options.model_card);
  }
  write_weights(temporary.folder, parts, options.max_shard_bytes, tensor);
  fs::rename(temporary.folder, target);
  temporary.done = true;
  fsync_folder(fs::path(target).parent_path().string());
  return describe(verdict);
}

}  // namespace sala
