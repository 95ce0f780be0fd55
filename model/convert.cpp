// The hybrid's configuration and what its mixers start from.
#include "model/convert.h"

#include <algorithm>

namespace sala {

ModelConfig hybrid_config(const ModelConfig& source, const std::vector<int64_t>& kept,
                          const SparseConfig& sparse, bool keep_qk_norm) {
  ModelConfig c = source;
  c.family = "minicpm_sala";
  c.mixers.assign(c.num_layers, Mixer::kLightning);
  for (int64_t layer : kept) c.mixers.at(layer) = Mixer::kSparse;
  c.sparse = sparse;
  c.lightning_kv_heads = c.num_heads;
  c.lightning_qk_norm = c.lightning_rope = true;
  c.lightning_output_norm = c.lightning_output_gate = true;
  c.sparse_rope = false;
  c.sparse_output_gate = true;
  c.sparse_qk_norm = source.full_qk_norm && keep_qk_norm;
  c.full_qk_norm = false;
  c.out_bias = source.qkv_bias || source.out_bias;
  c.qkv_bias = c.out_bias;
  c.lightning_rope_config = RopeConfig{};
  c.lightning_rope_config.theta = source.rope.theta;
  c.rope = c.lightning_rope_config;
  c.sliding_window = 0;
  return c;
}

void copy_weights(const Weights& from, Weights& to) {
  at::NoGradGuard no_grad;
  for (size_t i = 0; i < to.views().size(); ++i) {
    const std::string& name = to.layout().entries[i].name;
    const std::string suffix = name.substr(name.rfind('.', name.rfind('.') - 1) + 1);
    const at::Tensor source = from.find(suffix);
    if (source.defined() && source.sizes() == to.views()[i].sizes()) {
      to.views()[i].copy_(source);
    }
  }
}

namespace {

// (NKV * HS, ...) -> (NH * HS, ...): every KV head's rows repeated for each of its query heads.
at::Tensor expand_heads(const at::Tensor& rows, int64_t num_kv_heads, int64_t num_heads,
                        int64_t head_size) {
  auto sizes = rows.sizes().vec();
  std::vector<int64_t> by_head{num_kv_heads, head_size};
  by_head.insert(by_head.end(), sizes.begin() + 1, sizes.end());
  sizes[0] = num_heads * head_size;
  return rows.view(by_head).repeat_interleave(num_heads / num_kv_heads, 0).reshape(sizes);
}

constexpr double kStartGate = 0.5;  // sigmoid(0)

}  // namespace

void start_lightning_mixer(const ModelConfig& c, const Weights& source,
                           const at::Tensor& attention_rms, Weights& mixer) {
  at::NoGradGuard no_grad;
  mixer.flat.zero_();
  for (const char* norm : {"q_norm.weight", "k_norm.weight"}) {
    if (at::Tensor w = mixer.find(norm); w.defined()) w.fill_(1.0);
  }
  copy_weights(source, mixer);
  const int64_t num_kv_heads = source["k_proj.weight"].size(0) / c.head_size;
  for (const char* name : {"k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias"}) {
    const at::Tensor rows = source.find(name);
    if (!rows.defined()) continue;
    at::Tensor to = mixer.find(name);
    to.copy_(expand_heads(rows, num_kv_heads, c.num_heads, c.head_size));
  }
  mixer.find("o_norm.weight").copy_(attention_rms / kStartGate);
}

void start_sparse_mixer(const ModelConfig& c, const Weights& source, Weights& mixer) {
  at::NoGradGuard no_grad;
  mixer.flat.zero_();
  copy_weights(source, mixer);
  if (c.sparse_output_gate) mixer.find("o_proj.weight").div_(kStartGate);
}

}  // namespace sala
