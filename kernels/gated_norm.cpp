// The gate of a mixer's output: y = rmsnorm(o; weight) * sigmoid(z), or o * sigmoid(z) where the
// mixer has no output norm. The norm spans all C channels, not one head.

#include "kernels/check.h"
#include "kernels/ops.h"

namespace sala {

std::tuple<at::Tensor, at::Tensor> gated_norm_forward(const at::Tensor& o, const at::Tensor& z,
                                                      const at::Tensor& weight, double eps) {
  check_input(o, 2, "gated_norm", "o");
  check_same(z, o, "gated_norm", "z");
  at::Tensor y = at::sigmoid(z);
  if (!weight.defined()) return {y.mul_(o), at::Tensor()};
  auto [n, rstd] = rmsnorm_forward(o, weight, eps);
  return {y.mul_(n), rstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> gated_norm_backward(const at::Tensor& dy,
                                                                   const at::Tensor& o,
                                                                   const at::Tensor& z,
                                                                   const at::Tensor& weight,
                                                                   const at::Tensor& rstd) {
  check_input(o, 2, "gated_norm backward", "o");
  check_same(z, o, "gated_norm backward", "z");
  check_same(dy, o, "gated_norm backward", "dy");
  const at::Tensor gate = at::sigmoid(z);
  at::Tensor dn = at::mul(dy, gate);
  if (!weight.defined()) return {dn, at::sigmoid_backward(at::mul(dy, o), gate), at::Tensor()};
  check_statistic(rstd, {o.size(0)}, o, "gated_norm backward", "rstd");
  at::Tensor n = at::empty_like(o);
  at::mul_out(n, o, rstd.unsqueeze(1)).mul_(weight);
  at::Tensor dz = at::sigmoid_backward(n.mul_(dy), gate);
  auto [d_o, dweight] = rmsnorm_backward(dn, o, weight, rstd);
  return {d_o, dz, dweight};
}

}  // namespace sala
