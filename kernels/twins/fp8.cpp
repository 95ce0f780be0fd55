// FP8 operands and products in plain loops.
#include "kernels/twins/fp8.h"

#include <algorithm>
#include <cmath>

#include "kernels/twins/values.h"

namespace sala {

double round_to_e4m3(double value) {
  if (!std::isfinite(value)) return std::nan("");
  if (value == 0) return value;
  constexpr int kLeastExponent = -6, kFractionBits = 3;
  const int exponent = std::max(std::ilogb(value), kLeastExponent);
  const double step = std::ldexp(1.0, exponent - kFractionBits);
  return std::nearbyint(value / step) * step;
}

Fp8Rows fp8_rows_twin(const at::Tensor& x) {
  const auto values = values_of(x);
  const int64_t R = x.size(0), K = x.size(1);
  std::vector<double> codes(values.size()), scales(static_cast<size_t>(R));
  for (int64_t r = 0; r < R; ++r) {
    // In fp32 from here on, operation by operation: part of the definition.
    float largest = 1e-30f;
    for (int64_t k = 0; k < K; ++k) {
      const float magnitude = std::abs(static_cast<float>(values[r * K + k]));
      if (magnitude > largest || std::isnan(magnitude)) largest = magnitude;
      if (std::isnan(largest)) break;
    }
    const float inverse = 448.0f / largest;
    scales[r] = largest / 448.0f;
    for (int64_t k = 0; k < K; ++k) {
      const float scaled = static_cast<float>(values[r * K + k]) * inverse;
      codes[r * K + k] = round_to_e4m3(scaled);
    }
  }
  return {tensor_of(codes, {R, K}, at::kFloat8_e4m3fn), tensor_of(scales, {R}, at::kFloat)};
}

Fp8Rows fp8_columns_twin(const at::Tensor& x) { return fp8_rows_twin(x.t().contiguous()); }

at::Tensor fp8_product_twin(const Fp8Rows& a, const Fp8Rows& b, at::ScalarType dtype) {
  const auto a_values = values_of(a.values), a_scale = values_of(a.scale);
  const auto b_values = values_of(b.values), b_scale = values_of(b.scale);
  const int64_t M = a.values.size(0), N = b.values.size(0), K = a.values.size(1);
  std::vector<double> y(static_cast<size_t>(M * N));
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t n = 0; n < N; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < K; ++k) sum += a_values[m * K + k] * b_values[n * K + k];
      y[m * N + n] = sum * a_scale[m] * b_scale[n];
    }
  }
  return tensor_of(y, {M, N}, dtype);
}

at::Tensor fp8_add_product_twin(const at::Tensor& sum, const Fp8Rows& a, const Fp8Rows& b) {
  auto y = values_of(fp8_product_twin(a, b, at::kDouble));
  const auto before = values_of(sum);
  for (size_t i = 0; i < y.size(); ++i) y[i] += before[i];
  return tensor_of(y, sum.sizes().vec(), sum.scalar_type());
}

}  // namespace sala
