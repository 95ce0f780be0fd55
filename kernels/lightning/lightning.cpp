// The door of lightning attention: checks, slopes, and the choice between the CUDA kernels and the
// composition of LibTorch ops.

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "kernels/lightning/composed.h"
#include "kernels/lightning/cuda.h"
#include "kernels/ops.h"

namespace sala {

namespace {

void check_lightning(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& slopes, const Documents& docs, double scale,
                     const at::Tensor& initial, const char* op) {
  check_input(q, 3, op, "q");
  check_same(k, q, op, "k");
  check_same(v, q, op, "v");
  TORCH_CHECK(slopes.defined() && slopes.device().is_cpu() && slopes.scalar_type() == at::kDouble &&
                  slopes.is_contiguous() && slopes.sizes() == at::IntArrayRef{q.size(1)},
              op, ": expected contiguous fp64 slopes of ", q.size(1), " heads on the CPU");
  const double* s = slopes.const_data_ptr<double>();
  TORCH_CHECK(std::all_of(s, s + q.size(1), [](double x) { return x >= 0 && std::isfinite(x); }),
              op, ": expected finite slopes >= 0, got ", slopes);
  TORCH_CHECK(std::isnormal(static_cast<float>(scale)), op, ": expected a scale other than 0, got ",
              scale);
  TORCH_CHECK(docs.num_tokens() == q.size(0) && q.size(0) > 0, op, ": expected documents of ",
              q.size(0), " tokens (at least one), got ", docs.num_tokens());
  TORCH_CHECK(docs.offsets_i32.device() == q.device(), op, ": expected documents on ", q.device(),
              ", got ", docs.offsets_i32.device());
  if (initial.defined()) {
    check_statistic(initial, {docs.count(), q.size(1), q.size(2), q.size(2)}, q, op,
                    "initial_state");
  }
}

}  // namespace

at::Tensor lightning_slopes(int64_t num_heads) {
  TORCH_CHECK(num_heads > 0, "lightning_slopes: expected at least one head, got ", num_heads);
  int64_t power = 1;
  while (power * 2 <= num_heads) power *= 2;
  at::Tensor slopes = at::empty({num_heads}, at::kDouble);
  double* s = slopes.data_ptr<double>();
  for (int64_t h = 0; h < num_heads; ++h) {
    // Beyond the power of two: entries 0, 2, 4, ... of the list for twice as many heads.
    const double n = static_cast<double>(h < power ? power : 2 * power);
    const double place = static_cast<double>(h < power ? h + 1 : 2 * (h - power) + 1);
    s[h] = std::exp2(-8.0 * place / n);
  }
  return slopes;
}

std::tuple<at::Tensor, at::Tensor> lightning_forward(const at::Tensor& q, const at::Tensor& k,
                                                     const at::Tensor& v, const at::Tensor& slopes,
                                                     const Documents& docs, double scale,
                                                     const at::Tensor& initial_state,
                                                     bool want_final_state) {
  check_lightning(q, k, v, slopes, docs, scale, initial_state, "lightning_forward");
  const at::NoGradGuard no_grad;
  if (docs.longest == 1 && lightning_step_runs(q)) {
    auto [o, state] = lightning_step(q, k, v, slopes, scale, initial_state);
    return {o, want_final_state ? state : at::Tensor()};
  }
  if (lightning_kernels_run(q)) {
    return lightning_forward_cuda(q, k, v, slopes, docs, scale, initial_state, want_final_state);
  }
  auto [o, state] = lightning_forward_composed(q, k, v, slopes, docs, scale, initial_state);
  return {o, want_final_state ? state : at::Tensor()};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> lightning_backward(
    const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& slopes, const Documents& docs, double scale, const at::Tensor& initial_state,
    const at::Tensor& d_final_state) {
  check_lightning(q, k, v, slopes, docs, scale, initial_state, "lightning_backward");
  check_same(d_o, q, "lightning_backward", "d_o");
  if (d_final_state.defined()) {
    check_statistic(d_final_state, {docs.count(), q.size(1), q.size(2), q.size(2)}, q,
                    "lightning_backward", "d_final_state");
  }
  const at::NoGradGuard no_grad;
  if (lightning_kernels_run(q)) {
    return lightning_backward_cuda(d_o, q, k, v, slopes, docs, scale, initial_state, d_final_state);
  }
  return lightning_backward_composed(d_o, q, k, v, slopes, docs, scale, initial_state,
                                     d_final_state);
}

}  // namespace sala
