// Embedding, decoder block and final norm.
#include "model/block.h"

#include "model/autograd.h"
#include "model/mixers/mixers.h"

namespace sala {

at::Tensor EmbeddingUnit::forward(std::span<const Weights* const> weights, const at::Tensor&,
                                  const Env& env, Saved*) const {
  at::Tensor x = at::embedding((*weights[0])["embed_tokens.weight"], env.batch->ids);
  return config_.embedding_scale == 1.0 ? x : x * config_.embedding_scale;
}

at::Tensor block_forward(const ModelConfig& c, int64_t layer, Mixer mixer, const Weights& block,
                         const Weights& mixer_weights, const at::Tensor& x, const Env& env,
                         Saved* saved) {
  const MixerCall call{c, mixer_weights, env, layer, saved};
  const at::Tensor mixed =
      mixer_forward(mixer, call, rmsnorm(x, block["input_layernorm.weight"], c.rms_eps));
  const auto [h, u] =
      add_rmsnorm(x, mixed, c.residual_scale, block["post_attention_layernorm.weight"], c.rms_eps);
  at::Tensor gate_TF = at::linear(u, block["mlp.gate_proj.weight"]);
  at::Tensor up_TF = at::linear(u, block["mlp.up_proj.weight"]);
  at::Tensor y = at::linear(swiglu(gate_TF, up_TF), block["mlp.down_proj.weight"]);
  return at::add(h, y, c.residual_scale);
}

at::Tensor BlockUnit::forward(std::span<const Weights* const> weights, const at::Tensor& x,
                              const Env& env, Saved* saved) const {
  return block_forward(config_, layer_, config_.mixers[layer_], *weights[0], *weights[1], x, env,
                       saved);
}

at::Tensor FinalNormUnit::forward(std::span<const Weights* const> weights, const at::Tensor& x,
                                  const Env&, Saved*) const {
  return rmsnorm(x, (*weights[0])["norm.weight"], config_.rms_eps);
}

}  // namespace sala
