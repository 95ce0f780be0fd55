// Writing a model as a Hugging Face folder: a hybrid that a swap made as minicpm_sala, with the
// Python code by which transformers loads it; any other in the format of its source.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/weights/layout.h"

namespace sala {

inline constexpr int64_t kMaxShardBytes = 5'000'000'000;

struct ExportOptions {
  std::string
      folder;  // must not exist, or be empty, or hold what `maker` exported (export_target.h)
  std::string maker;
  // Where tokenizer, licence and so on are copied from; empty = nowhere.
  std::string source_folder;
  // config.json of the model as it was read, which is kept but for its dtype; null = a hybrid that
  // has none yet.
  nlohmann::json source_config;
  int64_t max_shard_bytes = kMaxShardBytes;
  std::string model_card;  // README.md of the export
};

// Writes config.json, sharded bf16 safetensors with their index, what belongs to the tokenizer,
// model card and SHA256SUMS. `tensor(name)` returns each tensor of the parts (any dtype, CPU).
// Throws with all refusals of export_verdict. Returns lines for the log: what was written and who
// loads it.
std::vector<std::string> export_model(const ModelConfig& config, const std::vector<Layout>& parts,
                                      const std::function<at::Tensor(const std::string&)>& tensor,
                                      const ExportOptions& options);

}  // namespace sala
