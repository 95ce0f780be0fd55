// Hugging Face model folders: reading config.json and safetensors (one file or sharded), and
// writing the hybrid as a minicpm_sala folder.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/layout.h"

namespace sala {

// Reads FOLDER/config.json. Throws std::runtime_error naming file and key.
ModelConfig read_model_config(const std::string& folder);

// Fills `parts` (fp32, bf16 or fp64 buffers on any device) from the folder's safetensors; the parts
// together must name every tensor of the folder exactly once. Tensors that are missing, unexpected,
// of the wrong shape or of an unsupported dtype (F32, F16, BF16 are read) are listed in ONE error.
// Known harmless extras are skipped: rotary inv_freq buffers, lm_head.weight equal to tied
// embeddings. Truncated or torn safetensors files: an error naming file and byte offset.
void read_weights(const std::string& folder, const std::vector<Weights*>& parts);

// The same comparison from the headers of the files alone: throws that error, reads no tensor.
void check_weights(const std::string& folder, const std::vector<Layout>& layouts);

struct ExportOptions {
  std::string folder;  // must not exist, or be an empty folder
  std::string
      tokenizer_folder;  // tokenizer*, special_tokens_map, generation_config… copied from here
  int64_t max_shard_bytes = 5'000'000'000;
  std::string model_card;  // README.md of the export
};
// Writes config.json, sharded bf16 safetensors + index, tokenizer and generation files, model card.
// `tensor(name)` returns each tensor of the parts (any dtype, CPU); written to FOLDER.tmp, then
// renamed. Throws with all refusals of export_verdict. Returns the verdict's lines for the log.
std::vector<std::string> export_hybrid(const ModelConfig& config, const std::vector<Layout>& parts,
                                       const std::function<at::Tensor(const std::string&)>& tensor,
                                       const ExportOptions& options);

}  // namespace sala
