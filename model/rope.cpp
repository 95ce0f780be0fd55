// Rotary tables. Every step is done in fp32 in the order of transformers' modeling_rope_utils, so
// that the frequencies are the numbers the source was trained with, not better ones: at position
// 131K a difference in the last bit already turns a cosine by 1e-3.
#include "model/rope.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "kernels/to_device.h"

namespace sala {
namespace {

using Kind = RopeConfig::Kind;

// theta^(2i / HS), i = 0 .. HS/2 - 1; (HS/2) fp32.
at::Tensor powers(double theta, int64_t head_size) {
  const at::Tensor exponent = at::arange(0, head_size, 2, at::kFloat) / head_size;
  return at::pow(at::Scalar(theta), exponent);
}

// Llama 3.1: long wavelengths are divided by `factor`, short ones stay, smooth in between.
at::Tensor llama3_frequencies(const RopeConfig& rope, const at::Tensor& inv_freq) {
  const auto old_context = static_cast<double>(rope.original_max_position);
  const double low = rope.low_freq_factor, high = rope.high_freq_factor;
  const at::Tensor wavelength = 2 * M_PI / inv_freq;
  const at::Tensor is_long = wavelength > old_context / low;
  const at::Tensor is_short = wavelength < old_context / high;
  const at::Tensor scaled = at::where(is_long, inv_freq / rope.factor, inv_freq);
  const at::Tensor smooth = (old_context / wavelength - low) / (high - low);
  const at::Tensor medium = (1 - smooth) * scaled / rope.factor + smooth * scaled;
  return at::where(is_long.logical_or(is_short), scaled, medium);
}

// YaRN (arXiv:2309.00071): the dimension that turns `rotations` times over the original context.
double yarn_dimension(const RopeConfig& rope, int64_t head_size, double rotations) {
  const auto old_context = static_cast<double>(rope.original_max_position);
  return static_cast<double>(head_size) * std::log(old_context / (rotations * 2 * M_PI)) /
         (2 * std::log(rope.theta));
}

at::Tensor yarn_frequencies(const RopeConfig& rope, int64_t head_size) {
  double low = yarn_dimension(rope, head_size, rope.beta_fast);
  double high = yarn_dimension(rope, head_size, rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(head_size - 1));
  if (low == high) high += 0.001;
  const at::Tensor ramp =
      ((at::arange(head_size / 2, at::kFloat) - low) / (high - low)).clamp(0, 1);
  const at::Tensor keep = 1 - ramp;  // 1: extrapolate (as trained), 0: interpolate
  const at::Tensor position_frequencies = powers(rope.theta, head_size);
  const at::Tensor extrapolated = 1.0 / position_frequencies;
  const at::Tensor interpolated = 1.0 / (rope.factor * position_frequencies);
  return interpolated * (1 - keep) + extrapolated * keep;
}

at::Tensor longrope_frequencies(const RopeConfig& rope, int64_t head_size, int64_t num_positions) {
  const bool is_long = num_positions > rope.original_max_position;
  const std::vector<double>& list = is_long ? rope.long_factor : rope.short_factor;
  TORCH_CHECK(static_cast<int64_t>(list.size()) == head_size / 2, "longrope: expected ",
              head_size / 2, " factors, got ", list.size());
  const at::Tensor factors = at::tensor(list, at::kDouble).to(at::kFloat);
  return 1.0 / (factors * powers(rope.theta, head_size));
}

double yarn_mscale(double scale, double mscale) {
  return scale <= 1 ? 1.0 : 0.1 * mscale * std::log(scale) + 1.0;
}

// inv_freq (HS/2), or a row of its own for each position.
RopeTable table_of(const at::Tensor& position, const at::Tensor& inv_freq, double factor) {
  const at::Tensor angle = position.to(at::kFloat).unsqueeze(1) * inv_freq;  // (T, HS/2)
  if (factor == 1.0) return {angle.cos(), angle.sin()};
  return {angle.cos() * factor, angle.sin() * factor};
}

}  // namespace

at::Tensor rope_inverse_frequencies(const RopeConfig& rope, int64_t head_size,
                                    int64_t num_positions) {
  TORCH_CHECK(head_size > 0 && head_size % 2 == 0, "rope: expected an even head size, got ",
              head_size);
  at::NoGradGuard no_grad;
  at::Tensor inv_freq;
  switch (rope.kind) {
    case Kind::kDefault:
      inv_freq = 1.0 / powers(rope.theta, head_size);
      break;
    case Kind::kLinear:
      inv_freq = 1.0 / powers(rope.theta, head_size) / rope.factor;
      break;
    case Kind::kLlama3:
      inv_freq = llama3_frequencies(rope, 1.0 / powers(rope.theta, head_size));
      break;
    case Kind::kLongrope:
      inv_freq = longrope_frequencies(rope, head_size, num_positions);
      break;
    case Kind::kYarn:
      inv_freq = yarn_frequencies(rope, head_size);
      break;
  }
  return inv_freq.to(at::kDouble);
}

double rope_attention_factor(const RopeConfig& rope, int64_t max_position) {
  if (rope.kind != Kind::kYarn && rope.kind != Kind::kLongrope) return 1.0;
  if (rope.attention_factor > 0) return rope.attention_factor;
  if (rope.kind == Kind::kYarn) {
    if (rope.mscale != 0 && rope.mscale_all_dim != 0) {
      return yarn_mscale(rope.factor, rope.mscale) / yarn_mscale(rope.factor, rope.mscale_all_dim);
    }
    return yarn_mscale(rope.factor, 1.0);
  }
  const auto old_context = static_cast<double>(rope.original_max_position);
  // factor 1 means not given: the ratio of the contexts takes its place.
  const double factor =
      rope.factor != 1.0 ? rope.factor : static_cast<double>(max_position) / old_context;
  return factor <= 1 ? 1.0 : std::sqrt(1 + std::log(factor) / std::log(old_context));
}

RopeTable rope_table(const RopeConfig& rope, int64_t head_size, int64_t max_position,
                     const at::Tensor& position, int64_t num_positions) {
  TORCH_CHECK(position.dim() == 1, "rope: expected positions of shape (T), got ", position.sizes());
  at::NoGradGuard no_grad;
  const at::Tensor inv_freq = queue_to(
      rope_inverse_frequencies(rope, head_size, num_positions).to(at::kFloat), position.device());
  return table_of(position, inv_freq, rope_attention_factor(rope, max_position));
}

StepRope::StepRope(const RopeConfig& rope, int64_t head_size, int64_t max_position,
                   at::Device device)
    : original_(rope.original_max_position), factor_(rope_attention_factor(rope, max_position)) {
  auto frequencies = [&](int64_t length) {
    return rope_inverse_frequencies(rope, head_size, length).to(at::kFloat).to(device);
  };
  short_ = frequencies(original_);
  if (rope.kind == Kind::kLongrope) long_ = frequencies(original_ + 1);
}

RopeTable StepRope::at(const at::Tensor& position) const {
  at::NoGradGuard no_grad;
  if (!short_.defined()) return {};
  if (!long_.defined()) return table_of(position, short_, factor_);
  const at::Tensor is_long = position.ge(original_).unsqueeze(1);
  return table_of(position, at::where(is_long, long_, short_), factor_);
}

}  // namespace sala
