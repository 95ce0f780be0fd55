// Batched matrix products that return fp32 (fp64 for fp64 operands): bf16 operands on CUDA keep the
// tensor cores and the fp32 accumulator, without a rounding in between; on the CPU they are widened
// first. fp32 operands follow LibTorch's TF32 setting, which is off unless someone turns it on.
#pragma once

#include <ATen/ATen.h>

namespace sala {

// a (N, X, Y), b (N, Y, Z) of one dtype -> (N, X, Z).
inline at::Tensor bmm_wide(const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() != at::kBFloat16) return at::bmm(a, b);
  return a.is_cuda() ? at::bmm(a, b, at::kFloat) : at::bmm(a.to(at::kFloat), b.to(at::kFloat));
}

// sum += a b, with sum (N, X, Z) in fp32/fp64.
inline void add_bmm_wide(at::Tensor& sum, const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() == sum.scalar_type()) {
    sum.baddbmm_(a, b);
  } else {
    sum.add_(bmm_wide(a, b));
  }
}

}  // namespace sala
