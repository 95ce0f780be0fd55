// Names and shapes of every tensor, part by part.
#include "model/weights/parts.h"

namespace sala {

namespace {

std::string layer_prefix(int64_t layer) { return "model.layers." + std::to_string(layer) + "."; }

// The matrices that one product takes: q, k, v and the gate, if the mixer has one.
void add_projections(Layout& layout, const ModelConfig& c, Mixer mixer, const std::string& prefix) {
  const char* gate = gate_name(c, mixer);
  const int64_t kv_size = c.kv_size(mixer);
  std::vector<Layout::Named> matrices{{prefix + "q_proj.weight", {c.q_size(), c.width}},
                                      {prefix + "k_proj.weight", {kv_size, c.width}},
                                      {prefix + "v_proj.weight", {kv_size, c.width}}};
  std::vector<Layout::Named> biases;
  if (c.qkv_bias) {
    biases = {{prefix + "q_proj.bias", {c.q_size()}, Init::kZeros},
              {prefix + "k_proj.bias", {kv_size}, Init::kZeros},
              {prefix + "v_proj.bias", {kv_size}, Init::kZeros}};
  }
  if (gate != nullptr) {
    const std::string name = prefix + gate;
    matrices.push_back({name + ".weight", {c.q_size(), c.width}, Init::kZeros});
    if (c.out_bias) biases.push_back({name + ".bias", {c.q_size()}, Init::kZeros});
  }
  layout.add_group(matrices, true);
  layout.add_group(biases, false);
}

}  // namespace

const char* gate_name(const ModelConfig& c, Mixer mixer) {
  if (mixer == Mixer::kSparse && c.sparse_output_gate) return "o_gate";
  if (mixer == Mixer::kLightning && c.lightning_output_gate) return "z_proj";
  return nullptr;
}

bool has_qk_norm(const ModelConfig& c, Mixer mixer) {
  if (mixer == Mixer::kFull) return c.full_qk_norm;
  return mixer == Mixer::kSparse ? c.sparse_qk_norm : c.lightning_qk_norm;
}

Layout embedding_layout(const ModelConfig& c) {
  Layout layout;
  layout.name = "embed";
  layout.add("model.embed_tokens.weight", {c.vocab_size, c.width}, true, Init::kNormal);
  return layout;
}

Layout block_layout(const ModelConfig& c, int64_t layer) {
  Layout layout;
  layout.name = "layers." + std::to_string(layer) + ".block";
  const std::string p = layer_prefix(layer);
  layout.add(p + "input_layernorm.weight", {c.width}, false, Init::kOnes);
  layout.add(p + "post_attention_layernorm.weight", {c.width}, false, Init::kOnes);
  layout.add_group({{p + "mlp.gate_proj.weight", {c.ffn_width, c.width}},
                    {p + "mlp.up_proj.weight", {c.ffn_width, c.width}}},
                   true);
  layout.add(p + "mlp.down_proj.weight", {c.width, c.ffn_width}, true, Init::kNormal);
  return layout;
}

Layout mixer_layout(const ModelConfig& c, int64_t layer, Mixer mixer) {
  Layout layout;
  layout.name = "layers." + std::to_string(layer) + ".mixer";
  const std::string p = layer_prefix(layer) + "self_attn.";
  add_projections(layout, c, mixer, p);
  layout.add(p + "o_proj.weight", {c.width, c.q_size()}, true, Init::kNormal);
  if (c.out_bias) layout.add(p + "o_proj.bias", {c.width}, false, Init::kZeros);
  if (has_qk_norm(c, mixer)) {
    layout.add(p + "q_norm.weight", {c.head_size}, false, Init::kOnes);
    layout.add(p + "k_norm.weight", {c.head_size}, false, Init::kOnes);
  }
  if (mixer == Mixer::kLightning && c.lightning_output_norm) {
    layout.add(p + "o_norm.weight", {c.q_size()}, false, Init::kOnes);
  }
  return layout;
}

Layout head_layout(const ModelConfig& c) {
  Layout layout;
  layout.name = "head";
  layout.add("model.norm.weight", {c.width}, false, Init::kOnes);
  if (!c.tied_head) layout.add("lm_head.weight", {c.vocab_size, c.width}, true, Init::kNormal);
  return layout;
}

std::vector<Layout> model_layouts(const ModelConfig& c) {
  std::vector<Layout> layouts{embedding_layout(c)};
  for (int64_t l = 0; l < c.num_layers; ++l) {
    layouts.push_back(block_layout(c, l));
    layouts.push_back(mixer_layout(c, l, c.mixers[l]));
  }
  layouts.push_back(head_layout(c));
  return layouts;
}

std::vector<Layout> aligned_layouts(const ModelConfig& c) {
  std::vector<Layout> layouts;
  for (int64_t l = 0; l < c.num_layers; ++l) {
    layouts.push_back(mixer_layout(c, l, Mixer::kLightning));
  }
  return layouts;
}

}  // namespace sala
