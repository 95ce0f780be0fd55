// What an export consists of, and the order in which it is written.
#include "trainer/folder/export.h"

#include <fmt/format.h>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <stdexcept>
#include <system_error>

#include "data/files/atomic_file.h"
#include "data/files/input_file.h"
#include "data/files/safetensors.h"
#include "model/families/families.h"
#include "model/weights/parts.h"
#include "trainer/folder/export_target.h"
#include "trainer/folder/hashes.h"
#include "trainer/folder/transformers_code.h"

namespace sala {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kBytesPerElement = 2;  // bf16
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kCard = "README.md";
constexpr const char* kGeneration = "generation_config.json";
constexpr const char* kTokenizer = "tokenizer.json";
constexpr const char* kTokenizerConfig = "tokenizer_config.json";
constexpr int64_t kMostTokenizerConfigBytes = int64_t{64} << 20;
constexpr const char* kTokenizerClass = "PreTrainedTokenizerFast";

// What belongs to a tokenizer, as the hub's folders name it, and what must go where the weights go.
bool travels(const std::string& name, bool with_code) {
  for (const char* start : {"tokenizer", "vocab.", "chat_template.", "LICENSE", "NOTICE"}) {
    if (name.starts_with(start)) return true;
  }
  for (const char* whole : {"special_tokens_map.json", "added_tokens.json", "merges.txt",
                            "tekken.json", "spiece.model", kGeneration}) {
    if (name == whole) return true;
  }
  return name.ends_with(".py") && (with_code || name.starts_with("tokenization"));
}

// Names of the source's files that the export gets too. A hybrid has code of ours instead.
std::vector<std::string> find_travellers(const ExportOptions& options, bool hybrid) {
  std::vector<std::string> names;
  if (options.source_folder.empty()) return names;
  std::error_code error;
  if (!fs::is_directory(options.source_folder, error)) {
    throw std::runtime_error(options.source_folder +
                             ": expected the folder of the tokenizer, there is none");
  }
  // config.json names classes in files beside it unless it says "repository--file.Class".
  const bool with_code =
      !hybrid && options.source_config.is_object() && options.source_config.contains("auto_map");
  for (const auto& entry : fs::directory_iterator(options.source_folder)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_directory(error) || !travels(name, with_code)) continue;
    require_input_file(entry.path().string());
    names.push_back(name);
  }
  return names;
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

int64_t weight_bytes(const std::vector<Layout>& parts) {
  int64_t total = 0;
  for (const Layout& part : parts) {
    for (const Entry& entry : part.entries) total += entry.num_elements() * kBytesPerElement;
  }
  return total;
}

void write_weights(const std::string& folder,
                   const std::vector<std::vector<SafetensorsSpec>>& shards, int64_t total_bytes,
                   const std::function<at::Tensor(const std::string&)>& tensor) {
  const auto finite = [&](const std::string& name) {
    at::Tensor t = tensor(name).to(at::kBFloat16);
    if (!t.isfinite().all().item<bool>()) {
      throw std::runtime_error("export: " + name + " holds NaN or infinity; nothing was written");
    }
    return t;
  };
  json weight_map;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string file = shard_name(i, shards.size());
    write_safetensors(folder + "/" + file, shards[i], finite);
    for (const SafetensorsSpec& spec : shards[i]) weight_map[spec.name] = file;
  }
  if (shards.size() == 1) return;
  const json index = {{"metadata", {{"total_size", total_bytes}}}, {"weight_map", weight_map}};
  write_file_atomically(folder + "/" + kIndex, index.dump(2) + "\n");
}

// Without the name of a class here, transformers would ask the model's code for the tokenizer's,
// and its user whether that may run; and without the names of what it gives, the class of all
// tokenizers gives token_type_ids too (transformers 4), which generate() refuses. Empty: it is left
// as it is.
std::string named_tokenizer(const std::string& source_folder,
                            const std::vector<std::string>& travellers) {
  const auto travels_along = [&](const char* name) {
    return std::count(travellers.begin(), travellers.end(), name) > 0;
  };
  if (!travels_along(kTokenizer)) return "";
  json config = json::object();
  if (travels_along(kTokenizerConfig)) {
    try {
      config = read_json_file(source_folder + "/" + kTokenizerConfig, kMostTokenizerConfigBytes);
    } catch (const std::runtime_error&) {  // travels as it is: what it means is the tokenizer's
      return "";
    }
    if (!config.is_object()) return "";
  }
  const json before = config;
  if (config.value("tokenizer_class", json()).is_null())
    config["tokenizer_class"] = kTokenizerClass;
  if (config["tokenizer_class"] == kTokenizerClass && !config.contains("model_input_names")) {
    config["model_input_names"] = json::array({"input_ids", "attention_mask"});
  }
  return config == before ? "" : config.dump(2) + "\n";
}

std::string generation_config(const json& config) {
  json out;
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"}) {
    if (!config[key].is_null()) out[key] = config[key];
  }
  out["transformers_version"] = config["transformers_version"];
  return out.dump(2) + "\n";
}

// The source's own, but for what is no longer so.
json own_config(json config, const ModelConfig& model) {
  if (model.is_hybrid()) config["auto_map"] = hybrid_config_json(model)["auto_map"];
  if (!config.contains("dtype")) config["torch_dtype"] = "bfloat16";
  for (const char* key : {"dtype", "torch_dtype"}) {  // the newer name, the older one
    if (config.contains(key)) config[key] = "bfloat16";
  }
  return config;
}

std::vector<std::string> describe(const ModelConfig& config, const json& written) {
  if (config.is_hybrid()) return loader_lines(export_verdict(config));
  std::string line = "transformers loads it as it loads the source (" + config.family;
  if (written.contains("auto_map")) line += ", with the source's own code: trust_remote_code=True";
  return {line + ")"};
}

void check_expressible(const ModelConfig& config, const ExportOptions& options) {
  if (!options.source_config.is_null()) return;  // it was read from this very format
  std::string reasons;
  for (const std::string& reason : export_verdict(config).refusals) {
    reasons += (reasons.empty() ? "" : "; ") + reason;
  }
  if (reasons.empty()) return;
  throw std::runtime_error("export to " + options.folder +
                           ": the minicpm_sala format cannot hold this model: " + reasons);
}

}  // namespace

std::vector<std::string> export_model(const ModelConfig& config, const std::vector<Layout>& parts,
                                      const std::function<at::Tensor(const std::string&)>& tensor,
                                      const ExportOptions& options) {
  check_expressible(config, options);
  check_parts(config, parts);
  const bool converted = options.source_config.is_null();
  const json written =
      converted ? hybrid_config_json(config) : own_config(options.source_config, config);
  const auto shards = plan_shards(parts, options.max_shard_bytes);
  const std::vector<std::string> travellers = find_travellers(options, config.is_hybrid());
  const std::vector<CodeFile> code =
      config.is_hybrid() ? transformers_code() : std::vector<CodeFile>();
  std::vector<std::string> files = travellers;
  for (const CodeFile& file : code) files.emplace_back(file.name);
  const bool generation = converted && std::count(files.begin(), files.end(), kGeneration) == 0;
  if (generation) files.emplace_back(kGeneration);
  const std::string tokenizer =
      config.is_hybrid() ? named_tokenizer(options.source_folder, travellers) : "";
  if (!tokenizer.empty() && std::count(files.begin(), files.end(), kTokenizerConfig) == 0) {
    files.emplace_back(kTokenizerConfig);
  }
  if (!options.model_card.empty()) files.emplace_back(kCard);
  if (shards.size() > 1) files.emplace_back(kIndex);
  for (size_t i = 0; i < shards.size(); ++i) files.push_back(shard_name(i, shards.size()));
  files.emplace_back(kHashFile);
  std::sort(files.begin(), files.end());
  ExportTarget target(options.folder, options.maker, files);
  const std::string folder = target.folder() + "/";
  for (const std::string& name : travellers) {
    write_file_atomically(folder + name, read_text_file(options.source_folder + "/" + name));
  }
  if (!tokenizer.empty()) write_file_atomically(folder + kTokenizerConfig, tokenizer);
  for (const CodeFile& file : code) {
    write_file_atomically(folder + std::string(file.name), std::string(file.text));
  }
  if (generation) write_file_atomically(folder + kGeneration, generation_config(written));
  if (!options.model_card.empty()) write_file_atomically(folder + kCard, options.model_card);
  const int64_t num_bytes = weight_bytes(parts);
  write_weights(target.folder(), shards, num_bytes, tensor);
  target.finish(written);
  std::vector<std::string> lines{
      fmt::format("exported to {}: {}, {} bf16 weights in {} file(s), {:.1f} MB", options.folder,
                  written.value("model_type", config.family), num_bytes / kBytesPerElement,
                  shards.size(), static_cast<double>(num_bytes) / 1e6)};
  for (const std::string& line : describe(config, written)) lines.push_back(line);
  return lines;
}

}  // namespace sala
