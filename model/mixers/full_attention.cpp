// Softmax attention of the source model.
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "kernels/ops.h"
#include "model/autograd.h"
#include "model/mixers/mixers.h"

namespace sala {

at::Tensor append_to_cache(at::Tensor& cache, const at::Tensor& x, int64_t num_before) {
  const int64_t total = num_before + x.size(0);
  if (!cache.defined() || cache.size(0) < total) {
    auto sizes = x.sizes().vec();
    sizes[0] = std::max<int64_t>(total + 64, num_before * 3 / 2);
    at::Tensor grown = at::empty(sizes, x.options());
    if (num_before > 0) grown.narrow(0, 0, num_before).copy_(cache.narrow(0, 0, num_before));
    cache = grown;
  }
  cache.narrow(0, num_before, x.size(0)).copy_(x);
  return cache.narrow(0, 0, total);
}

at::Tensor attend_dense(const MixerCall& call, const at::Tensor& q, const at::Tensor& k,
                        const at::Tensor& v, const Documents& q_docs, const Documents& k_docs,
                        double scale) {
  // A forward that will be recomputed has no graph either, but somewhere to save for it.
  const bool forward_only = call.saved == nullptr && !at::GradMode::is_enabled();
  if (!forward_only) return dense_attention(q, k, v, q_docs, k_docs, scale);
  return dense_attention_output(q.contiguous(), k.contiguous(), v.contiguous(), q_docs, k_docs,
                                scale);
}

at::Tensor full_attention(const MixerCall& call, const at::Tensor& x) {
  const ModelConfig& c = call.config;
  const Weights& w = call.weights;
  const int64_t T = x.size(0);
  auto heads = [&](const char* weight, const char* bias, int64_t n) {
    return at::linear(x, w[weight], w.find(bias)).view({T, n, c.head_size});
  };
  at::Tensor q_THD = heads("q_proj.weight", "q_proj.bias", c.num_heads);
  at::Tensor k_TKD = heads("k_proj.weight", "k_proj.bias", c.num_kv_heads);
  at::Tensor v_TKD = heads("v_proj.weight", "v_proj.bias", c.num_kv_heads);
  const RopeTable& rope = call.env.full_rope;
  q_THD = qk_norm_rope(q_THD, w.find("q_norm.weight"), rope.cos, rope.sin, c.rms_eps);
  k_TKD = qk_norm_rope(k_TKD, w.find("k_norm.weight"), rope.cos, rope.sin, c.rms_eps);
  if (DecodeState* decode = call.env.decode) {
    LayerState& kept = decode->layers[call.layer];
    k_TKD = append_to_cache(kept.k, k_TKD, decode->num_tokens);
    v_TKD = append_to_cache(kept.v, v_TKD, decode->num_tokens);
  }
  const double scale = 1.0 / std::sqrt(static_cast<double>(c.head_size));
  at::Tensor o_TC =
      attend_dense(call, q_THD, k_TKD, v_TKD, call.env.batch->docs, call.env.key_docs, scale)
          .reshape({T, c.q_size()});
  at::Tensor y_TC = at::linear(o_TC, w["o_proj.weight"], w.find("o_proj.bias"));
  if (call.env.tap) (*call.env.tap)(call.layer, x, o_TC, y_TC);
  return y_TC;
}

}  // namespace sala
