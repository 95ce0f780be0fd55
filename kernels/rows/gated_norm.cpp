// The gate of a mixer's output: y = rmsnorm(o; weight) * sigmoid(z), or o * sigmoid(z) where the
// mixer has no output norm. The norm spans all C channels, not one head. Kernels on CUDA
// (gated_norm.cu), a composition for the rest.

#include "kernels/check.h"
#include "kernels/cuda_doors.h"
#include "kernels/ops.h"
#include "kernels/rows/gated_norm_launch.h"

namespace sala {
namespace {

#ifdef SALA_CUDA
std::tuple<at::Tensor, at::Tensor> forward_cuda(const at::Tensor& o, const at::Tensor& z,
                                                const at::Tensor& weight, double eps) {
  const c10::cuda::CUDAGuard guard(o.device());
  at::Tensor y = at::empty_like(o), rstd;
  if (weight.defined()) rstd = at::empty({o.size(0)}, o.options().dtype(at::kFloat));
  GateForward op{};
  op.type = element_type(o);
  op.rows = o.size(0);
  op.C = static_cast<int>(o.size(1));
  op.eps = static_cast<float>(eps);
  op.o = o.const_data_ptr();
  op.z = z.const_data_ptr();
  op.z_stride = z.stride(0);
  op.weight = data_or_null(weight);
  op.y = y.data_ptr();
  op.rstd = rstd.defined() ? rstd.data_ptr<float>() : nullptr;
  check_launch(gate_forward_cuda(op, c10::cuda::getCurrentCUDAStream()));
  return {y, rstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_cuda(
    const at::Tensor& dy, const at::Tensor& o, const at::Tensor& z, const at::Tensor& weight,
    const at::Tensor& rstd, const at::Tensor& dz) {
  const c10::cuda::CUDAGuard guard(o.device());
  at::Tensor d_o = at::empty_like(o), dweight, partials;
  GateBackward op{};
  op.type = element_type(o);
  op.rows = o.size(0);
  op.C = static_cast<int>(o.size(1));
  op.dy = dy.const_data_ptr();
  op.o = o.const_data_ptr();
  op.z = z.const_data_ptr();
  op.z_stride = z.stride(0);
  op.d_o = d_o.data_ptr();
  op.dz = dz.data_ptr();
  op.dz_stride = dz.stride(0);
  if (weight.defined()) {
    dweight = at::empty_like(weight, accumulate_type(weight));
    partials = empty_partials(o, o.size(1));
    op.weight = weight.const_data_ptr();
    op.rstd = rstd.const_data_ptr<float>();
    op.dweight = dweight.data_ptr<float>();
    op.partials = partials.data_ptr<float>();
  }
  check_launch(gate_backward_cuda(op, c10::cuda::getCurrentCUDAStream()));
  return {d_o, dz, dweight};
}
#endif

}  // namespace

std::tuple<at::Tensor, at::Tensor> gated_norm_forward(const at::Tensor& o, const at::Tensor& z,
                                                      const at::Tensor& weight, double eps) {
  check_input(o, 2, "gated_norm", "o");
  check_same_columns(z, o, "gated_norm", "z");
  if (weight.defined()) check_weight(weight, o, "gated_norm");
#ifdef SALA_CUDA
  if (row_kernels_take("gated_norm", o, o.size(1))) return forward_cuda(o, z, weight, eps);
#endif
  at::Tensor y = at::sigmoid(z.contiguous());  // so that columns give the bits of their copy
  if (!weight.defined()) return {y.mul_(o), at::Tensor()};
  auto [n, rstd] = rmsnorm_forward(o, weight, eps);
  return {y.mul_(n), rstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> gated_norm_backward(
    const at::Tensor& dy, const at::Tensor& o, const at::Tensor& z, const at::Tensor& weight,
    const at::Tensor& rstd, const at::Tensor& dz_out) {
  check_input(o, 2, "gated_norm backward", "o");
  check_same_columns(z, o, "gated_norm backward", "z");
  check_same(dy, o, "gated_norm backward", "dy");
  if (weight.defined()) {
    check_weight(weight, o, "gated_norm backward");
    check_statistic(rstd, {o.size(0)}, o, "gated_norm backward", "rstd");
  }
  at::Tensor dz = dz_out.defined() ? dz_out : at::empty(z.sizes(), z.options());
  check_same_columns(dz, o, "gated_norm backward", "dz_out");
#ifdef SALA_CUDA
  if (row_kernels_take("gated_norm", o, o.size(1)))
    return backward_cuda(dy, o, z, weight, rstd, dz);
#endif
  const at::Tensor gate = at::sigmoid(z.contiguous());
  at::Tensor dn = at::mul(dy, gate);
  if (!weight.defined()) {
    at::sigmoid_backward_out(dz, at::mul(dy, o), gate);
    return {dn, dz, at::Tensor()};
  }
  at::Tensor n = at::empty_like(o);
  at::mul_out(n, o, rstd.unsqueeze(1)).mul_(weight);
  at::sigmoid_backward_out(dz, n.mul_(dy), gate);
  auto [d_o, dweight] = rmsnorm_backward(dn, o, weight, rstd);
  return {d_o, dz, dweight};
}

}  // namespace sala
