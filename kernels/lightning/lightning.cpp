// The door of lightning attention: checks, slopes, and the choice between the CUDA kernels and the
// composition of LibTorch ops.

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/check.h"
#include "kernels/lightning/border_states.h"
#include "kernels/lightning/composed.h"
#include "kernels/lightning/cuda.h"
#include "kernels/ops.h"

namespace sala {

namespace {

void check_slopes(const at::Tensor& slopes, int64_t num_heads, const char* op) {
  TORCH_CHECK(slopes.defined() && slopes.device().is_cpu() && slopes.scalar_type() == at::kDouble &&
                  slopes.is_contiguous() && slopes.sizes() == at::IntArrayRef{num_heads},
              op, ": expected contiguous fp64 slopes of ", num_heads, " heads on the CPU");
  const double* s = slopes.const_data_ptr<double>();
  TORCH_CHECK(std::all_of(s, s + num_heads, [](double x) { return x >= 0 && std::isfinite(x); }),
              op, ": expected finite slopes >= 0, got ", slopes);
}

void check_scale(double scale, const char* op) {
  TORCH_CHECK(std::isnormal(static_cast<float>(scale)), op, ": expected a scale other than 0, got ",
              scale);
}

void check_run(const at::Tensor& a, const char* a_name, const at::Tensor& b, const char* b_name,
               const at::Tensor& slopes, int64_t num_tokens, const char* op) {
  check_input(a, 3, op, a_name);
  check_same(b, a, op, b_name);
  check_slopes(slopes, a.size(1), op);
  TORCH_CHECK(num_tokens > 0 && num_tokens <= a.size(0), op, ": expected a run of 1 to ", a.size(0),
              " tokens, got ", num_tokens);
}

// (d, NH, HS, HS) of d documents; may be undefined.
void check_states(const at::Tensor& states, const at::Tensor& q, const Documents& docs,
                  const char* op, const char* name) {
  if (!states.defined()) return;
  TORCH_CHECK(states.dim() == 4 && states.size(0) >= 1 && states.size(0) <= docs.count(), op,
              ": expected ", name, " of 1 to ", docs.count(), " documents, got ", states.sizes());
  check_statistic(states, {states.size(0), q.size(1), q.size(2), q.size(2)}, q, op, name);
}

void check_lightning(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& slopes, const Documents& docs, double scale,
                     const at::Tensor& initial, const char* op) {
  check_input(q, 3, op, "q");
  check_same(k, q, op, "k");
  check_same(v, q, op, "v");
  check_slopes(slopes, q.size(1), op);
  check_scale(scale, op);
  TORCH_CHECK(docs.num_tokens() == q.size(0) && q.size(0) > 0, op, ": expected documents of ",
              q.size(0), " tokens (at least one), got ", docs.num_tokens());
  TORCH_CHECK(docs.offsets_i32.device() == q.device(), op, ": expected documents on ", q.device(),
              ", got ", docs.offsets_i32.device());
  check_states(initial, q, docs, op, "initial_state");
}

// For all of D documents, as everything but the kernels wants them: zero where none are given.
at::Tensor for_all(const at::Tensor& states, int64_t D, bool to_last) {
  if (!states.defined() || states.size(0) == D) return states;
  std::vector<int64_t> sizes = states.sizes().vec();
  sizes[0] = D;
  at::Tensor all = at::zeros(sizes, states.options());
  all.narrow(0, to_last ? D - states.size(0) : 0, states.size(0)).copy_(states);
  return all;
}

// o of one-token documents whose states nobody wants: together these would be far larger than all
// else of a training row, so a few at a time go into the same memory.
at::Tensor steps_without_states(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                const at::Tensor& slopes, double scale,
                                const at::Tensor& initial_state) {
  constexpr int64_t kTogether = 256;
  const int64_t D = q.size(0), given = initial_state.defined() ? initial_state.size(0) : 0;
  std::vector<at::Tensor> parts;
  at::Tensor states;
  for (int64_t first = 0; first < D; first += kTogether) {
    const int64_t n = std::min(kTogether, D - first), n_given = std::min(n, given - first);
    at::Tensor initial;
    if (n_given > 0) initial = for_all(initial_state.narrow(0, first, n_given), n, false);
    auto [o, next] =
        lightning_step(q.narrow(0, first, n), k.narrow(0, first, n), v.narrow(0, first, n), slopes,
                       scale, initial, states.defined() ? states.narrow(0, 0, n) : at::Tensor());
    parts.push_back(o);
    if (!states.defined()) states = next;
  }
  return parts.size() == 1 ? parts[0] : at::cat(parts);
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
    if (!want_final_state) return {steps_without_states(q, k, v, slopes, scale, initial_state), {}};
    return lightning_step(q, k, v, slopes, scale,
                          for_all(initial_state, docs.count(), /*to_last=*/false));
  }
  if (lightning_kernels_run(q)) {
    return lightning_forward_cuda(q, k, v, slopes, docs, scale, initial_state, want_final_state);
  }
  auto [o, state] = lightning_forward_composed(
      q, k, v, slopes, docs, scale, for_all(initial_state, docs.count(), /*to_last=*/false));
  return {o, want_final_state ? state : at::Tensor()};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> lightning_backward(
    const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& slopes, const Documents& docs, double scale, const at::Tensor& initial_state,
    const at::Tensor& d_final_state) {
  check_lightning(q, k, v, slopes, docs, scale, initial_state, "lightning_backward");
  check_same(d_o, q, "lightning_backward", "d_o");
  check_states(d_final_state, q, docs, "lightning_backward", "d_final_state");
  const at::NoGradGuard no_grad;
  if (lightning_kernels_run(q)) {
    return lightning_backward_cuda(d_o, q, k, v, slopes, docs, scale, initial_state, d_final_state);
  }
  auto [dq, dk, dv, d_initial] = lightning_backward_composed(
      d_o, q, k, v, slopes, docs, scale, for_all(initial_state, docs.count(), /*to_last=*/false),
      for_all(d_final_state, docs.count(), /*to_last=*/true));
  if (d_initial.defined()) d_initial = d_initial.narrow(0, 0, initial_state.size(0));
  return {dq, dk, dv, d_initial};
}

at::Tensor lightning_end_state(const at::Tensor& k, const at::Tensor& v, const at::Tensor& slopes,
                               int64_t first_token) {
  const int64_t n = k.dim() > 0 ? k.size(0) - first_token : 0;
  check_run(k, "k", v, "v", slopes, n, "lightning_end_state");
  const at::NoGradGuard no_grad;
  return lightning_border_sum(k.narrow(0, first_token, n), v.narrow(0, first_token, n), slopes,
                              LightningBorder::kAfter);
}

at::Tensor lightning_start_gradient(const at::Tensor& q, const at::Tensor& d_o,
                                    const at::Tensor& slopes, int64_t end_token, double scale) {
  const char* op = "lightning_start_gradient";
  check_run(q, "q", d_o, "d_o", slopes, end_token, op);
  check_scale(scale, op);
  const at::NoGradGuard no_grad;
  return lightning_border_sum(q.narrow(0, 0, end_token), d_o.narrow(0, 0, end_token), slopes,
                              LightningBorder::kBefore)
      .mul_(scale);
}

}  // namespace sala
