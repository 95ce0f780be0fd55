// SwiGLU (Shazeer 2020): y = silu(gate) * up, silu(g) = g * sigmoid(g). Kernels on CUDA
// (swiglu.cu), a composition for the rest.

#include "kernels/check.h"
#include "kernels/cuda_doors.h"
#include "kernels/ops.h"
#include "kernels/rows/swiglu_launch.h"

namespace sala {

at::Tensor swiglu_forward(const at::Tensor& gate, const at::Tensor& up) {
  check_input(gate, -1, "swiglu", "gate");
  check_same(up, gate, "swiglu", "up");
#ifdef SALA_CUDA
  if (kernels_take(gate)) {
    const c10::cuda::CUDAGuard guard(gate.device());
    at::Tensor y = at::empty_like(gate);
    check_launch(swiglu_forward_cuda(element_type(gate), gate.const_data_ptr(), up.const_data_ptr(),
                                     y.data_ptr(), gate.numel(),
                                     c10::cuda::getCurrentCUDAStream()));
    return y;
  }
#endif
  return at::silu(gate).mul_(up);
}

std::tuple<at::Tensor, at::Tensor> swiglu_backward(const at::Tensor& dy, const at::Tensor& gate,
                                                   const at::Tensor& up) {
  check_input(gate, -1, "swiglu backward", "gate");
  check_same(up, gate, "swiglu backward", "up");
  check_same(dy, gate, "swiglu backward", "dy");
#ifdef SALA_CUDA
  if (kernels_take(gate)) {
    const c10::cuda::CUDAGuard guard(gate.device());
    at::Tensor d_gate = at::empty_like(gate), d_up = at::empty_like(up);
    check_launch(swiglu_backward_cuda(
        element_type(gate), dy.const_data_ptr(), gate.const_data_ptr(), up.const_data_ptr(),
        d_gate.data_ptr(), d_up.data_ptr(), gate.numel(), c10::cuda::getCurrentCUDAStream()));
    return {d_gate, d_up};
  }
#endif
  at::Tensor dgate = at::silu_backward(at::mul(dy, up), gate);
  at::Tensor dup = at::silu(gate).mul_(dy);
  return {dgate, dup};
}

}  // namespace sala
