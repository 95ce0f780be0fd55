// Names and shapes of every tensor, part by part.
#include "model/parts.h"

namespace sala {

namespace {

std::string layer_prefix(int64_t layer) { return "model.layers." + std::to_string(layer) + "."; }

void add_matrix(Layout& layout, const std::string& name, int64_t out, int64_t in, bool bias,
                Init init = Init::kNormal) {
  layout.add(name + ".weight", {out, in}, true, init);
  if (bias) layout.add(name + ".bias", {out}, false, Init::kZeros);
}

}  // namespace

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
  add_matrix(layout, p + "mlp.gate_proj", c.ffn_width, c.width, false);
  add_matrix(layout, p + "mlp.up_proj", c.ffn_width, c.width, false);
  add_matrix(layout, p + "mlp.down_proj", c.width, c.ffn_width, false);
  return layout;
}

Layout mixer_layout(const ModelConfig& c, int64_t layer, Mixer mixer) {
  Layout layout;
  layout.name = "layers." + std::to_string(layer) + ".mixer";
  const std::string p = layer_prefix(layer) + "self_attn.";
  add_matrix(layout, p + "q_proj", c.q_size(), c.width, c.qkv_bias);
  add_matrix(layout, p + "k_proj", c.kv_size(mixer), c.width, c.qkv_bias);
  add_matrix(layout, p + "v_proj", c.kv_size(mixer), c.width, c.qkv_bias);
  add_matrix(layout, p + "o_proj", c.width, c.q_size(), c.out_bias);
  if (mixer == Mixer::kSparse && c.sparse_output_gate) {
    add_matrix(layout, p + "o_gate", c.q_size(), c.width, c.out_bias, Init::kZeros);
  }
  if (mixer == Mixer::kLightning && c.lightning_output_gate) {
    add_matrix(layout, p + "z_proj", c.q_size(), c.width, c.out_bias, Init::kZeros);
  }
  const bool qk_norm = mixer == Mixer::kFull     ? c.full_qk_norm
                       : mixer == Mixer::kSparse ? c.sparse_qk_norm
                                                 : c.lightning_qk_norm;
  if (qk_norm) {
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

}  // namespace sala
