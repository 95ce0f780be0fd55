// How far a GPU's result is from the CPU's.
#pragma once

#include <ATen/ATen.h>

namespace sala {

// |a - expected| / |expected| over all elements.
inline double relative_error(const at::Tensor& a, const at::Tensor& expected) {
  const at::Tensor wide = expected.to(at::kCPU, at::kFloat);
  return ((a.to(at::kCPU, at::kFloat) - wide).norm() / wide.norm()).item<double>();
}

}  // namespace sala
