// The tensor side of the CUDA kernels of lightning attention.

#include "kernels/lightning/cuda.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda_doors.h"
#include "kernels/lightning/launch.h"
#include "kernels/paths.h"

namespace sala {

#ifdef SALA_CUDA

namespace {

static_assert(kLightningTileTokens == Documents::kTileTokens);

const float* maybe_float(const at::Tensor& x) {
  return x.defined() ? x.const_data_ptr<float>() : nullptr;
}

LightningLine line_of(const at::Tensor& q, const at::Tensor& slopes, const Documents& docs,
                      double scale) {
  LightningLine line{};
  line.offsets = docs.offsets_i32.const_data_ptr<int>();
  line.tiles = docs.tiles_i32.const_data_ptr<int>();
  line.num_docs = static_cast<int>(docs.count());
  line.num_tiles = static_cast<int>(docs.num_tiles);
  line.num_heads = static_cast<int>(q.size(1));
  line.num_ranges = lightning_num_ranges(docs.num_tiles * q.size(1), q.size(2));
  line.num_tokens = q.size(0);
  line.scale = static_cast<float>(scale);
  const double* s = slopes.const_data_ptr<double>();
  for (int64_t h = 0; h < q.size(1); ++h)
    line.rate[h] = static_cast<float>(std::min(s[h] * M_LOG2E, 1e6));
  return line;
}

at::Tensor empty_borders(const at::Tensor& q, const LightningLine& line) {
  return at::empty({line.num_ranges - 1, kLightningParts, q.size(2), q.size(2)},
                   q.options().dtype(at::kFloat));
}

at::Tensor empty_states(const at::Tensor& q, int64_t num_docs) {
  return at::empty({num_docs, q.size(1), q.size(2), q.size(2)}, q.options().dtype(at::kFloat));
}

// `given` (or undefined): of documents from the first or to the last one.
LightningStates states_of(const at::Tensor& borders, const at::Tensor& given, bool to_last,
                          const LightningLine& line, const at::Tensor& leaving) {
  LightningStates states;
  states.borders = borders.const_data_ptr<float>();
  if (given.defined()) {
    states.given = given.const_data_ptr<float>();
    states.num_given = static_cast<int>(given.size(0));
    states.first_given = to_last ? line.num_docs - states.num_given : 0;
  }
  if (leaving.defined()) {
    states.leaving = leaving.data_ptr<float>();
    states.num_leaving = static_cast<int>(leaving.size(0));
  }
  return states;
}

// What every lightning kernel needs and q lacks; empty: nothing.
std::string lacking_device_or_heads(const at::Tensor& q) {
  const c10::cuda::CUDAGuard guard(q.device());
  if (lightning_arch() == LightningArch::kNone) return "a GPU of compute capability 8.0 or later";
  if (q.size(1) > kLightningMaxHeads) {
    return c10::str("at most ", kLightningMaxHeads, " heads, got ", q.size(1));
  }
  return {};
}

}  // namespace

bool lightning_kernels_run(const at::Tensor& q) {
  if (!q.is_cuda()) return false;
  std::string lacking = lacking_device_or_heads(q);
  if (q.size(2) != 64 && q.size(2) != 128) {
    lacking = c10::str("head size 64 or 128, got ", q.size(2));
  }
  if (q.scalar_type() != at::kBFloat16) lacking = c10::str("bf16, got ", q.scalar_type());
  return kernels_run("lightning_attention", lacking);
}

std::tuple<at::Tensor, at::Tensor> lightning_forward_cuda(
    const at::Tensor& q_any, const at::Tensor& k_any, const at::Tensor& v_any,
    const at::Tensor& slopes, const Documents& docs, double scale, const at::Tensor& initial_state,
    bool want_final_state) {
  const c10::cuda::CUDAGuard guard(q_any.device());
  const at::Tensor q = aligned(q_any), k = aligned(k_any), v = aligned(v_any);
  const LightningLine line = line_of(q, slopes, docs, scale);
  const at::Tensor borders = empty_borders(q, line);
  at::Tensor o = at::empty_like(q), final_state;
  if (want_final_state) final_state = empty_states(q, docs.count());
  const int64_t HS = q.size(2);
  check_launch(launch_lightning_end_states(k.const_data_ptr(), v.const_data_ptr(),
                                           borders.data_ptr<float>(), HS,
                                           /*from_right=*/false, line, current_stream()));
  const at::Tensor initial = aligned(initial_state);
  const LightningStates states = states_of(borders, initial, /*to_last=*/false, line, final_state);
  check_launch(launch_lightning_forward(q.const_data_ptr(), k.const_data_ptr(), v.const_data_ptr(),
                                        o.data_ptr(), states, HS, line, current_stream()));
  return {o, final_state};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> lightning_backward_cuda(
    const at::Tensor& d_o, const at::Tensor& q_any, const at::Tensor& k_any,
    const at::Tensor& v_any, const at::Tensor& slopes, const Documents& docs, double scale,
    const at::Tensor& initial_state, const at::Tensor& d_final_state) {
  const c10::cuda::CUDAGuard guard(q_any.device());
  const at::Tensor q = aligned(q_any), k = aligned(k_any), v = aligned(v_any), g = aligned(d_o);
  const LightningLine line = line_of(q, slopes, docs, scale);
  const at::Tensor borders = empty_borders(q, line);
  float* at_borders = borders.data_ptr<float>();
  at::Tensor dq = at::empty_like(q), dk = at::empty_like(k), dv = at::empty_like(v), d_initial;
  if (initial_state.defined()) d_initial = empty_states(q, initial_state.size(0));
  const int64_t HS = q.size(2);
  const void *qp = q.const_data_ptr(), *kp = k.const_data_ptr(), *vp = v.const_data_ptr();
  const void* gp = g.const_data_ptr();

  // dq_t = scale sum_j lambda^(t-j) (g_t v_j) k_j: the forward of (g, v, k).
  check_launch(launch_lightning_end_states(vp, kp, at_borders, HS, /*from_right=*/false, line,
                                           current_stream()));
  const at::Tensor initial = aligned(initial_state), d_final = aligned(d_final_state);
  LightningStates before = states_of(borders, initial, /*to_last=*/false, line, {});
  before.given_transposed = true;
  check_launch(
      launch_lightning_forward(gp, vp, kp, dq.data_ptr(), before, HS, line, current_stream()));

  check_launch(launch_lightning_end_states(qp, gp, at_borders, HS, /*from_right=*/true, line,
                                           current_stream()));
  const LightningStates after = states_of(borders, d_final, /*to_last=*/true, line, d_initial);
  check_launch(launch_lightning_backward(qp, kp, vp, gp, dk.data_ptr(), dv.data_ptr(), after, HS,
                                         line, current_stream()));
  return {dq, dk, dv, d_initial};
}

bool lightning_step_runs(const at::Tensor& q) {
  if (!q.is_cuda()) return false;
  std::string lacking = lacking_device_or_heads(q);
  if (q.size(2) % 4 != 0 || q.size(2) > kLightningStepMaxHeadSize) {
    lacking = c10::str("head sizes that are multiples of 4 up to ", kLightningStepMaxHeadSize,
                       ", got ", q.size(2));
  }
  if (q.scalar_type() != at::kBFloat16 && q.scalar_type() != at::kFloat) {
    lacking = c10::str("bf16 or fp32, got ", q.scalar_type());
  }
  return kernels_run("lightning_attention, one token of each document", lacking);
}

std::tuple<at::Tensor, at::Tensor> lightning_step(const at::Tensor& q, const at::Tensor& k,
                                                  const at::Tensor& v, const at::Tensor& slopes,
                                                  double scale, const at::Tensor& initial_state,
                                                  at::Tensor next) {
  const c10::cuda::CUDAGuard guard(q.device());
  const int64_t D = q.size(0), NH = q.size(1), HS = q.size(2);
  LightningDecays decays{};
  for (int64_t h = 0; h < NH; ++h) {
    decays.values[h] = static_cast<float>(std::exp(-slopes.const_data_ptr<double>()[h]));
  }
  at::Tensor o = at::empty_like(q);
  const at::Tensor state = aligned(initial_state);
  if (!next.defined()) next = at::empty({D, NH, HS, HS}, q.options().dtype(at::kFloat));
  check_launch(launch_lightning_step(q.const_data_ptr(), k.const_data_ptr(), v.const_data_ptr(),
                                     maybe_float(state), o.data_ptr(), next.data_ptr<float>(),
                                     q.scalar_type() == at::kBFloat16, D, NH, HS,
                                     static_cast<float>(scale), decays, current_stream()));
  return {o, next};
}

#else

bool lightning_kernels_run(const at::Tensor&) { return false; }
bool lightning_step_runs(const at::Tensor&) { return false; }

std::tuple<at::Tensor, at::Tensor> lightning_forward_cuda(const at::Tensor&, const at::Tensor&,
                                                          const at::Tensor&, const at::Tensor&,
                                                          const Documents&, double,
                                                          const at::Tensor&, bool) {
  TORCH_CHECK(false, "lightning_forward: this build has no CUDA");
}
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> lightning_backward_cuda(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
    const Documents&, double, const at::Tensor&, const at::Tensor&) {
  TORCH_CHECK(false, "lightning_backward: this build has no CUDA");
}
std::tuple<at::Tensor, at::Tensor> lightning_step(const at::Tensor&, const at::Tensor&,
                                                  const at::Tensor&, const at::Tensor&, double,
                                                  const at::Tensor&, at::Tensor) {
  TORCH_CHECK(false, "lightning_forward: this build has no CUDA");
}

#endif

}  // namespace sala
