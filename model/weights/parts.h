// The parts of a model and the tensors in each, with the names of Hugging Face checkpoints. A block
// and its mixer are parts of their own, because align and score pair one block with two mixers.
#pragma once

#include "model/config.h"
#include "model/weights/layout.h"

namespace sala {

Layout embedding_layout(const ModelConfig& config);
Layout block_layout(const ModelConfig& config, int64_t layer);               // norms and MLP
Layout mixer_layout(const ModelConfig& config, int64_t layer, Mixer mixer);  // self_attn.*
Layout head_layout(const ModelConfig& config);  // final norm; lm_head where it is not tied
// The gate's projection, "o_gate" or "z_proj"; nullptr where the mixer has none.
const char* gate_name(const ModelConfig& config, Mixer mixer);
bool has_qk_norm(const ModelConfig& config, Mixer mixer);
// All parts in order: embedding, (block, mixer) per layer, head.
std::vector<Layout> model_layouts(const ModelConfig& config);
// A lightning mixer for every layer: what is aligned.
std::vector<Layout> aligned_layouts(const ModelConfig& config);

}  // namespace sala
