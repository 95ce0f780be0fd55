// SwiGLU (Shazeer 2020): y = silu(gate) * up, silu(g) = g * sigmoid(g).

#include "kernels/check.h"
#include "kernels/ops.h"

namespace sala {

at::Tensor swiglu_forward(const at::Tensor& gate, const at::Tensor& up) {
  check_input(gate, -1, "swiglu", "gate");
  check_same(up, gate, "swiglu", "up");
  return at::silu(gate).mul_(up);
}

std::tuple<at::Tensor, at::Tensor> swiglu_backward(const at::Tensor& dy, const at::Tensor& gate,
                                                   const at::Tensor& up) {
  check_input(gate, -1, "swiglu backward", "gate");
  check_same(up, gate, "swiglu backward", "up");
  check_same(dy, gate, "swiglu backward", "dy");
  at::Tensor dgate = at::silu_backward(at::mul(dy, up), gate);
  at::Tensor dup = at::silu(gate).mul_(dy);
  return {dgate, dup};
}

}  // namespace sala
