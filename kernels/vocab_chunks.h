// What the two losses over the vocabulary share: logits of one chunk of tokens at a time, and the
// products that carry the chunk's logit gradient back to x and w.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>

#include "kernels/check.h"

namespace sala {

// Tokens per chunk: fp32 logits of about 64 MB on the CPU, 256 MB on a GPU.
inline int64_t vocab_chunk_tokens(const at::Tensor& w) {
  const int64_t num_bytes = (w.is_cuda() ? int64_t{256} : int64_t{64}) << 20;
  return std::max<int64_t>(1, num_bytes / (w.size(0) * 4));
}

// x (n, C) times w (V, C) transposed, in fp32 or fp64, times `factor`. (n, V)
inline at::Tensor chunk_logits(const at::Tensor& x, const at::Tensor& w, double factor) {
  const auto wide = accumulate_type(x);
  at::Tensor logits = x.is_cuda() && x.scalar_type() != wide
                          ? at::mm(x, w.t(), wide)  // bf16 in, fp32 out
                          : at::mm(x.to(wide), w.to(wide).t());
  return factor == 1.0 ? logits : logits.mul_(factor);
}

// With the gradient at x w^T (n, V): dx (n, C) is written, d_w (V, C) is added to where defined.
inline void chunk_backward(const at::Tensor& d_logits, const at::Tensor& x, const at::Tensor& w,
                           at::Tensor dx, at::Tensor d_w) {
  const at::Tensor g = d_logits.to(x.scalar_type());
  at::mm_out(dx, g, w);
  if (!d_w.defined()) return;
  if (x.scalar_type() == d_w.scalar_type()) {
    d_w.addmm_(g.t(), x);
  } else if (x.is_cuda()) {
    at::addmm_out(d_w, d_w, g.t(), x, d_w.scalar_type());  // bf16 in, fp32 sum
  } else {
    d_w.addmm_(g.t().to(d_w.scalar_type()), x.to(d_w.scalar_type()));
  }
}

inline void check_vocab_inputs(const char* op, const at::Tensor& x, const at::Tensor& w,
                               const at::Tensor& targets, const at::Tensor& weight,
                               const at::Tensor& d_w) {
  check_input(x, 2, op, "x");
  check_input(w, 2, op, "w");
  check_like(w, x, op, "w");
  TORCH_CHECK(w.size(1) == x.size(1), op, ": expected w of width ", x.size(1), ", got ", w.sizes());
  check_shape(weight, {x.size(0)}, op, "weight");
  TORCH_CHECK(weight.device() == x.device() && at::isFloatingType(weight.scalar_type()), op,
              ": expected floating-point weight on ", x.device(), ", got ", weight.scalar_type(),
              " on ", weight.device());
  if (d_w.defined()) check_statistic(d_w, w.sizes(), x, op, "d_w");
  if (!targets.defined()) return;
  check_shape(targets, {x.size(0)}, op, "targets");
  TORCH_CHECK(targets.scalar_type() == at::kLong && targets.device() == x.device(), op,
              ": expected int64 targets on ", x.device(), ", got ", targets.scalar_type(), " on ",
              targets.device());
  if (targets.numel() == 0) return;
  const auto [lowest, highest] = at::aminmax(targets);
  const int64_t low = lowest.item<int64_t>(), high = highest.item<int64_t>();
  TORCH_CHECK(low >= 0 && high < w.size(0), op, ": expected targets in [0, ", w.size(0), "), got ",
              low < 0 ? low : high);
}

inline double weighted_sum(const at::Tensor& weight, const at::Tensor& loss_T) {
  return at::mul(weight, loss_T).sum(at::kDouble).item<double>();
}

}  // namespace sala
