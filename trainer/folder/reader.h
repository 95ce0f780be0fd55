// Hugging Face model folders as sources: config.json and safetensors (one file or sharded).
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/layout.h"

namespace sala {

// Reads FOLDER/config.json. Throws std::runtime_error naming file and key.
ModelConfig read_model_config(const std::string& folder);
nlohmann::json read_config_json(const std::string& folder);

// Fills `parts` (fp32, bf16 or fp64 buffers on any device) from the folder's safetensors; the parts
// together must name every tensor of the folder exactly once. Tensors that are missing, unexpected,
// of the wrong shape or of an unsupported dtype (F32, F16, BF16 are read) are listed in ONE error.
// Known harmless extras are skipped: rotary inv_freq buffers, lm_head.weight equal to tied
// embeddings, which also may be there under either name alone. Truncated or torn safetensors files:
// an error naming file and byte offset. While the bytes pass: files with another SHA-256 than the
// folder states (trainer/folder/hashes.h), NaN and infinity are errors.
void read_weights(const std::string& folder, const std::vector<Weights*>& parts);

// The same comparison from the headers of the files alone: throws that error, reads no tensor.
void check_weights(const std::string& folder, const std::vector<Layout>& layouts);

}  // namespace sala
