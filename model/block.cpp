// The block, forward and backward, from the op library's functions and one product for gate and up.
//
// What is kept: the mixer's list (mixers/), h (T, C), norm(h), gate | up (T, 2F) and their SwiGLU
// (T, F), two statistics (T); with full recomputing of long rows not what is F wide
// (feed_forward.h).
#include "model/block.h"

#include "kernels/ops.h"
#include "model/feed_forward.h"
#include "model/mixers/mixers.h"

namespace sala {

namespace {

at::Tensor scaled(const at::Tensor& x, double factor) { return factor == 1.0 ? x : x * factor; }

// h and u = norm(h). A recompute that finds h needs neither the mixer's output nor the sum.
std::pair<at::Tensor, at::Tensor> mixer_half(const BlockFrame& call, const at::Tensor& x,
                                             const Mix& mix) {
  const ModelConfig& c = call.config;
  auto [normed, input_rstd] = rmsnorm_forward(x, call.block["input_layernorm.weight"], c.rms_eps);
  at::Tensor h = call.saved && call.saved->trimmed() ? call.saved->find("h") : at::Tensor();
  const at::Tensor mixed = mix(normed, !h.defined());

  const at::Tensor& weight = call.block["post_attention_layernorm.weight"];
  at::Tensor u, rstd;
  if (h.defined()) {
    std::tie(u, rstd) = rmsnorm_forward(h, weight, c.rms_eps);
  } else {
    std::tie(h, u, rstd) = add_rmsnorm_forward(x, mixed, c.residual_scale, weight, c.rms_eps);
  }
  if (call.saved) {
    call.saved->keep("input_rstd", input_rstd, Cost::kElementwise);
    call.saved->keep("h", h, Cost::kProduct);
    call.saved->keep("mlp_input", u, Cost::kElementwise);
    call.saved->keep("mlp_rstd", rstd, Cost::kElementwise);
  }
  return {h, u};
}

}  // namespace

at::Tensor block_forward(const BlockFrame& call, const at::Tensor& x, const Mix& mix) {
  const auto [h, u] = mixer_half(call, x, mix);
  const at::Tensor y = feed_forward(call, h, u);
  if (call.saved && call.saved->trimmed()) call.saved->made_again();
  return y;
}

at::Tensor block_backward(const BlockFrame& call, const at::Tensor& dy, Gradient& block_gradient,
                          const MixBackward& mix_backward) {
  const ModelConfig& c = call.config;
  const Weights& w = call.block;
  Saved& saved = *call.saved;
  TORCH_CHECK(saved.input.defined(), "block backward: expected the block's input in `saved`");

  at::Tensor du = feed_forward_backward(call, dy, block_gradient);
  auto [dh, d_post_norm] = add_rmsnorm_backward(
      du, dy, saved.take("h"), w["post_attention_layernorm.weight"], saved.take("mlp_rstd"));
  block_gradient.add("post_attention_layernorm.weight", d_post_norm);
  du.reset();

  const at::Tensor d_normed = mix_backward(scaled(dh, c.residual_scale));
  auto [dx, d_input_norm] = add_rmsnorm_backward(
      d_normed, dh, saved.input, w["input_layernorm.weight"], saved.take("input_rstd"));
  block_gradient.add("input_layernorm.weight", d_input_norm);
  return dx;
}

at::Tensor block_forward(const BlockCall& call, const at::Tensor& x) {
  MixerCall mixer{call.config, call.mixer_weights, call.env, call.layer, call.saved};
  return block_forward({call.config, call.block, call.saved, call.env.matmul}, x,
                       [&](const at::Tensor& normed, bool wants_output) {
                         mixer.wants_output = wants_output;
                         return mixer_forward(call.mixer, mixer, normed);
                       });
}

at::Tensor block_backward(const BlockCall& call, const at::Tensor& dy, Gradient& block_gradient,
                          Gradient& mixer_gradient) {
  const MixerCall mixer{call.config, call.mixer_weights, call.env, call.layer, call.saved};
  return block_backward({call.config, call.block, call.saved, call.env.matmul}, dy, block_gradient,
                        [&](const at::Tensor& d_mixed) {
                          return mixer_backward(call.mixer, mixer, d_mixed, mixer_gradient);
                        });
}

BlockCall BlockUnit::call(const Lease& weights, const Env& env, Saved* saved) const {
  return {config_, layer_, config_.mixers[layer_], weights[0], weights[1], env, saved};
}

at::Tensor BlockUnit::forward(const Lease& weights, const at::Tensor& x, const Env& env,
                              Saved* saved) const {
  return block_forward(call(weights, env, saved), x);
}

at::Tensor BlockUnit::backward(const Lease& weights, const at::Tensor& dy, const Env& env,
                               Saved& saved, std::span<Gradient* const> gradients) const {
  return block_backward(call(weights, env, &saved), dy, *gradients[0], *gradients[1]);
}

}  // namespace sala
