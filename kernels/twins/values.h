// How the twins read and write tensors: every value is a double, an array of doubles at a time, and
// rounds to a dtype where the op's definition does.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace sala {

inline std::vector<double> values_of(const at::Tensor& x) {
  if (!x.defined()) return {};
  const at::Tensor wide = x.detach().to(at::kCPU, at::kDouble).contiguous();
  const double* data = wide.const_data_ptr<double>();
  return {data, data + wide.numel()};
}

inline double dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

inline double rounded(double value, at::ScalarType dtype) {
  if (dtype == at::kFloat) return static_cast<float>(value);
  if (dtype == at::kBFloat16) return static_cast<c10::BFloat16>(static_cast<float>(value));
  return value;
}

inline at::Tensor tensor_of(const std::vector<double>& values, at::IntArrayRef sizes,
                            at::ScalarType dtype) {
  at::Tensor wide = at::empty(sizes, at::kDouble);
  TORCH_CHECK(wide.numel() == static_cast<int64_t>(values.size()), "twin: expected ", wide.numel(),
              " values for sizes ", sizes, ", got ", values.size());
  std::copy(values.begin(), values.end(), wide.data_ptr<double>());
  return wide.to(dtype);
}

}  // namespace sala
