// The linear mixer of 3 layers in 4: S_t = exp(-s_h) S_{t-1} + k_t v_t^T, o_t = alpha S_t^T q_t.
#include <cmath>

#include "kernels/ops.h"
#include "model/generation/cache.h"
#include "model/mixers/attention.h"
#include "model/mixers/split_sequence.h"
#include "model/mixers/step.h"

namespace sala {

namespace {

constexpr const char* kEnteringState = "entering_state";  // (NH, HS, HS)

double alpha(const ModelConfig& c) {
  return c.lightning_scale > 0 ? c.lightning_scale : 1.0 / std::sqrt(double(c.head_size));
}

// A model may have fewer KV heads than query heads; the recurrence has one state per query head.
at::Tensor expand_kv_heads(const at::Tensor& x_TKD, int64_t num_heads) {
  if (x_TKD.size(1) == num_heads) return x_TKD;
  return x_TKD.repeat_interleave(num_heads / x_TKD.size(1), 1);
}

at::Tensor sum_kv_heads(const at::Tensor& d_THD, int64_t num_kv_heads) {
  if (d_THD.size(1) == num_kv_heads) return d_THD;
  return d_THD.view({d_THD.size(0), num_kv_heads, -1, d_THD.size(2)}).sum(2);
}

// What enters the first document of a shard from the ranks before it, undefined: nothing. A
// recompute finds it, on all ranks alike: none of them may wait for a gather that others skip.
at::Tensor state_from_earlier_ranks(const MixerCall& call, const at::Tensor& k, const at::Tensor& v,
                                    const at::Tensor& slopes) {
  if (call.saved && call.saved->trimmed()) return call.saved->find(kEnteringState);
  const at::Tensor state = entering_state(*call.env.batch->shard, k, v, slopes);
  if (call.saved && state.defined()) call.saved->keep(kEnteringState, state, Cost::kAttention);
  return state;
}

// Of the batch's documents in what generation keeps: (D, NH, HS, HS).
at::Tensor kept_states(const MixerCall& call) {
  const CachePass& pass = *call.env.cached;
  return pass.cache.layers[call.layer].state.narrow(0, pass.first_sequence,
                                                    call.env.batch->docs.count());
}

// As lightning_forward and _backward take it: of one document; undefined: zero.
at::Tensor of_one(const at::Tensor& state) {
  return state.defined() ? state.unsqueeze(0) : at::Tensor();
}

// The states that the first documents enter with, (1 or D, NH, HS, HS); undefined: zero.
at::Tensor initial_states(const MixerCall& call, const at::Tensor& k, const at::Tensor& v,
                          const at::Tensor& slopes) {
  if (const CachePass* pass = call.env.cached) {
    return pass->num_before > 0 ? kept_states(call) : at::Tensor();
  }
  const Batch& batch = *call.env.batch;
  if (!batch.shard) return {};
  return of_one(state_from_earlier_ranks(call, k, v, slopes));
}

// Of the last document's state at its end, from the ranks behind this one; undefined: zero.
at::Tensor final_gradients(const MixerCall& call, const at::Tensor& q, const at::Tensor& d_o,
                           const at::Tensor& slopes) {
  const Batch& batch = *call.env.batch;
  if (!batch.shard) return {};
  return of_one(leaving_gradient(*batch.shard, q, d_o, slopes, alpha(call.config)));
}

}  // namespace

at::Tensor attend_lightning(const MixerCall& call, const Heads& heads) {
  const ModelConfig& c = call.config;
  return find_or_make(call.saved, "attention", Cost::kProduct, [&] {
    const at::Tensor k = expand_kv_heads(heads.k, c.num_heads);
    const at::Tensor v = expand_kv_heads(heads.v, c.num_heads);
    const at::Tensor slopes = lightning_slopes(c.num_heads);
    if (call.env.cached && call.env.cached->is_step) {
      return step_lightning(call, heads.q, k, v, alpha(c));
    }
    auto [o_THD, final_state] = lightning_forward(heads.q, k, v, slopes, call.env.batch->docs,
                                                  alpha(c), initial_states(call, k, v, slopes),
                                                  /*want_final_state=*/call.env.cached != nullptr);
    if (call.env.cached) kept_states(call).copy_(final_state);
    return o_THD.view({o_THD.size(0), c.q_size()});
  });
}

Heads attend_lightning_backward(const MixerCall& call, const at::Tensor& d_o, const Heads& heads) {
  const ModelConfig& c = call.config;
  const at::Tensor k = expand_kv_heads(heads.k, c.num_heads);
  const at::Tensor v = expand_kv_heads(heads.v, c.num_heads);
  const at::Tensor slopes = lightning_slopes(c.num_heads);
  const at::Tensor d_o_THD = d_o.view(heads.q.sizes());
  at::Tensor initial;
  if (call.env.batch->shard) initial = of_one(call.saved->find(kEnteringState));
  const auto [dq, dk, dv, d_initial] =
      lightning_backward(d_o_THD, heads.q, k, v, slopes, call.env.batch->docs, alpha(c), initial,
                         final_gradients(call, heads.q, d_o_THD, slopes));
  return {dq, sum_kv_heads(dk, heads.k.size(1)), sum_kv_heads(dv, heads.v.size(1))};
}

}  // namespace sala
