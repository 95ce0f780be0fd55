// Both mixers side by side inside one block. Kept beside the lists of block and mixers: the
// difference of the mixers' outputs (T, C), which is all that the gate's gradient needs.
#include "model/gated_block.h"

#include "model/mixers/mixers.h"

namespace sala {

namespace {

MixerCall attention_call(const GatedCall& call, GatedSaved& saved) {
  return {call.config, call.attention, call.env, call.layer, &saved.attention};
}

MixerCall linear_call(const GatedCall& call, GatedSaved& saved) {
  return {call.linear_config, call.linear, call.linear_env, call.layer, &saved.linear};
}

at::Tensor mix(const GatedCall& call, GatedSaved& saved, const at::Tensor& normed,
               bool wants_output) {
  MixerCall attention = attention_call(call, saved), linear = linear_call(call, saved);
  const bool again = saved.block.trimmed();
  const bool has_difference = again && saved.block.find("difference").defined();
  attention.wants_output = linear.wants_output = wants_output || !has_difference;
  const at::Tensor a = mixer_forward(call.config.mixers[call.layer], attention, normed);
  const at::Tensor b = mixer_forward(Mixer::kLightning, linear, normed);
  saved.attention.made_again();
  saved.linear.made_again();
  if (!attention.wants_output) return {};
  const at::Tensor difference = a - b;
  saved.block.keep("difference", difference, Cost::kProduct);
  return at::add(b, difference, call.gate);
}

}  // namespace

void GatedSaved::trim(Recompute level) {
  for (Saved* saved : {&block, &attention, &linear}) saved->trim(level);
}

at::Tensor gated_forward(const GatedCall& call, const at::Tensor& x, GatedSaved& saved) {
  saved.block.input = x;
  return block_forward({call.config, call.block, &saved.block}, x,
                       [&](const at::Tensor& normed, bool wants_output) {
                         return mix(call, saved, normed, wants_output);
                       });
}

GatedGradient gated_backward(const GatedCall& call, const at::Tensor& dy, GatedSaved& saved) {
  Gradient frozen;
  GatedGradient result;
  result.dx = block_backward(
      {call.config, call.block, &saved.block}, dy, frozen, [&](const at::Tensor& d_mixed) {
        const at::ScalarType wide = at::promote_types(at::kFloat, d_mixed.scalar_type());
        const at::Tensor difference = saved.block.take("difference");
        result.d_gate_T = (d_mixed.to(wide) * difference.to(wide)).sum(1);
        const at::Tensor d_normed =
            mixer_backward(call.config.mixers[call.layer], attention_call(call, saved),
                           d_mixed * call.gate, frozen);
        return d_normed + mixer_backward(Mixer::kLightning, linear_call(call, saved),
                                         d_mixed * (1.0 - call.gate), frozen);
      });
  return result;
}

}  // namespace sala
