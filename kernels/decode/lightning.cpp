// One token of lightning attention for each of S sequences, in place.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "kernels/check.h"
#include "kernels/decode.h"
#include "kernels/lightning/cuda.h"

namespace sala {

at::Tensor lightning_decode(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& slopes, double scale, at::Tensor& state) {
  const char* op = "lightning_decode";
  const at::NoGradGuard no_grad;
  check_input(q, 3, op, "q");
  check_same(k, q, op, "k");
  check_same(v, q, op, "v");
  check_statistic(state, {q.size(0), q.size(1), q.size(2), q.size(2)}, q, op, "state");
  TORCH_CHECK(slopes.defined() && slopes.device().is_cpu() && slopes.scalar_type() == at::kDouble &&
                  slopes.is_contiguous() && slopes.sizes() == at::IntArrayRef{q.size(1)},
              op, ": expected contiguous fp64 slopes of ", q.size(1), " heads on the CPU");
  if (lightning_step_runs(q)) {
    return std::get<0>(lightning_step(q, k, v, slopes, scale, state, state));
  }
  const at::ScalarType wide = state.scalar_type();
  const at::Tensor decay = slopes.neg().exp_().to(wide).to(q.device());
  state.mul_(decay.view({1, -1, 1, 1}))
      .addcmul_(k.to(wide).unsqueeze(-1), v.to(wide).unsqueeze(-2));
  return at::matmul(q.to(wide).unsqueeze(-2), state).squeeze(-2).mul_(scale).to(q.scalar_type());
}

}  // namespace sala
