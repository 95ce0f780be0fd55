// The linear mixer of 3 layers in 4, S_t = exp(-s_h) S_{t-1} + k_t v_t^T, o_t = alpha S_t^T q_t;
// and the choice among mixers.
#include <cmath>

#include "model/autograd.h"
#include "model/mixers/mixers.h"

namespace sala {

namespace {

at::Tensor expand_kv_heads(const at::Tensor& x_TKD, int64_t num_heads) {
  if (x_TKD.size(1) == num_heads) return x_TKD;
  return x_TKD.repeat_interleave(num_heads / x_TKD.size(1), 1);
}

}  // namespace

at::Tensor lightning_mixer(const MixerCall& call, const at::Tensor& x) {
  const ModelConfig& c = call.config;
  const Weights& w = call.weights;
  const int64_t T = x.size(0);
  auto heads = [&](const char* weight, const char* bias, int64_t n) {
    return at::linear(x, w[weight], w.find(bias)).view({T, n, c.head_size});
  };
  const RopeTable none, &rope = c.lightning_rope ? call.env.lightning_rope : none;
  at::Tensor q_THD = heads("q_proj.weight", "q_proj.bias", c.num_heads);
  at::Tensor k_THD = heads("k_proj.weight", "k_proj.bias", c.lightning_kv_heads);
  at::Tensor v_THD = heads("v_proj.weight", "v_proj.bias", c.lightning_kv_heads);
  q_THD = qk_norm_rope(q_THD, w.find("q_norm.weight"), rope.cos, rope.sin, c.rms_eps);
  k_THD = qk_norm_rope(k_THD, w.find("k_norm.weight"), rope.cos, rope.sin, c.rms_eps);
  k_THD = expand_kv_heads(k_THD, c.num_heads);
  v_THD = expand_kv_heads(v_THD, c.num_heads);

  const double alpha =
      c.lightning_scale > 0 ? c.lightning_scale : 1.0 / std::sqrt(double(c.head_size));
  at::Tensor initial;
  if (call.env.decode) initial = call.env.decode->layers[call.layer].state;
  auto [o_THD, final_state] = lightning_attention(
      q_THD, k_THD, v_THD, lightning_slopes(c.num_heads), call.env.batch->docs, alpha, initial,
      /*want_final_state=*/call.env.decode != nullptr);
  if (call.env.decode) call.env.decode->layers[call.layer].state = final_state;

  at::Tensor o_TC = o_THD.reshape({T, c.q_size()});
  at::Tensor mixed = o_TC;
  const at::Tensor norm = w.find("o_norm.weight");
  if (c.lightning_output_gate) {
    at::Tensor z_TC = at::linear(x, w["z_proj.weight"], w.find("z_proj.bias"));
    mixed = gated_norm(o_TC, z_TC, norm, c.rms_eps);
  } else if (norm.defined()) {
    mixed = rmsnorm(o_TC, norm, c.rms_eps);
  }
  at::Tensor y_TC = at::linear(mixed, w["o_proj.weight"], w.find("o_proj.bias"));
  if (call.env.tap) (*call.env.tap)(call.layer, x, o_TC, y_TC);
  return y_TC;
}

at::Tensor mixer_forward(Mixer mixer, const MixerCall& call, const at::Tensor& x) {
  switch (mixer) {
    case Mixer::kFull:
      return full_attention(call, x);
    case Mixer::kSparse:
      return sparse_attention(call, x);
    case Mixer::kLightning:
      return lightning_mixer(call, x);
  }
  TORCH_CHECK(false, "unknown mixer");
}

}  // namespace sala
