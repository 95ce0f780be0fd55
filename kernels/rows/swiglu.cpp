// SwiGLU (Shazeer 2020): y = silu(gate) * up, silu(g) = g * sigmoid(g). Kernels on CUDA
// (swiglu.cu), a composition for the rest.

#include "kernels/check.h"
#include "kernels/cuda_doors.h"
#include "kernels/ops.h"
#include "kernels/rows/swiglu_launch.h"

namespace sala {
namespace {

#ifdef SALA_CUDA
// Without pointers to y and dy. The gradients are undefined in a forward.
Swiglu describe(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& d_gate = {},
                const at::Tensor& d_up = {}) {
  Swiglu op{};
  op.type = element_type(gate);
  op.gate = gate.const_data_ptr();
  op.up = up.const_data_ptr();
  if (d_gate.defined()) {
    op.d_gate = d_gate.data_ptr();
    op.d_up = d_up.data_ptr();
  }
  const auto dense = [](const at::Tensor& x) { return !x.defined() || x.is_contiguous(); };
  const bool all_dense = dense(gate) && dense(up) && dense(d_gate) && dense(d_up);
  op.rows = all_dense ? 1 : gate.size(0);
  op.C = gate.numel() / op.rows;
  op.in_stride = all_dense ? op.C : gate.stride(0);
  op.out_stride = all_dense || !d_gate.defined() ? op.C : d_gate.stride(0);
  return op;
}

// Dense tensors, or columns that lie alike and in whole chunks.
bool kernel_takes(const Swiglu& op, const at::Tensor& gate, const at::Tensor& up,
                  const at::Tensor& d_gate = {}, const at::Tensor& d_up = {}) {
  if (op.rows == 1) return true;  // describe() saw that all are dense, or there is one row
  const bool alike =
      gate.stride(0) == up.stride(0) && (!d_gate.defined() || d_gate.stride(0) == d_up.stride(0));
  return alike && swiglu_takes_rows(op);
}
#endif

}  // namespace

at::Tensor swiglu_forward(const at::Tensor& gate, const at::Tensor& up) {
  check_columns(gate, -1, "swiglu", "gate");
  check_same_columns(up, gate, "swiglu", "up");
#ifdef SALA_CUDA
  if (kernels_take("swiglu", gate)) {
    const c10::cuda::CUDAGuard guard(gate.device());
    Swiglu op = describe(gate, up);
    if (!kernel_takes(op, gate, up)) return swiglu_forward(gate.contiguous(), up.contiguous());
    at::Tensor y = at::empty(gate.sizes(), gate.options());
    op.y = y.data_ptr();
    check_launch(swiglu_forward_cuda(op, c10::cuda::getCurrentCUDAStream()));
    return y;
  }
#endif
  at::Tensor y = at::empty(gate.sizes(), gate.options());
  return at::silu_out(y, gate).mul_(up);
}

std::tuple<at::Tensor, at::Tensor> swiglu_backward(const at::Tensor& dy, const at::Tensor& gate,
                                                   const at::Tensor& up,
                                                   const at::Tensor& d_gate_out,
                                                   const at::Tensor& d_up_out) {
  check_columns(gate, -1, "swiglu backward", "gate");
  check_same_columns(up, gate, "swiglu backward", "up");
  check_same(dy, gate, "swiglu backward", "dy");
  const auto out = [&](const at::Tensor& given, const char* name) {
    if (!given.defined()) return at::empty(gate.sizes(), gate.options());
    check_same_columns(given, gate, "swiglu backward", name);
    return given;
  };
  at::Tensor d_gate = out(d_gate_out, "d_gate_out"), d_up = out(d_up_out, "d_up_out");
#ifdef SALA_CUDA
  if (kernels_take("swiglu", gate)) {
    const c10::cuda::CUDAGuard guard(gate.device());
    Swiglu op = describe(gate, up, d_gate, d_up);
    if (!kernel_takes(op, gate, up, d_gate, d_up)) {
      const auto [dense_gate, dense_up] = swiglu_backward(dy, gate.contiguous(), up.contiguous());
      d_gate.copy_(dense_gate);
      d_up.copy_(dense_up);
      return {d_gate, d_up};
    }
    op.dy = dy.const_data_ptr();
    check_launch(swiglu_backward_cuda(op, c10::cuda::getCurrentCUDAStream()));
    return {d_gate, d_up};
  }
#endif
  at::silu_backward_out(d_gate, at::mul(dy, up), gate);
  at::silu_out(d_up, gate).mul_(dy);
  return {d_gate, d_up};
}

}  // namespace sala
