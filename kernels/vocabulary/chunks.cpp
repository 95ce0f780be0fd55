// The loop over chunks of tokens behind the losses over the vocabulary.

#include "kernels/vocabulary/chunks.h"

#include <algorithm>

#include "kernels/check.h"

namespace sala {
namespace {

constexpr int64_t kRowMultiple = 128;  // rows of a tile of the products

// With the gradient at x w^T (n, V): dx (n, C) is written, d_w (V, C) is added to where defined.
void chunk_backward(const at::Tensor& d_logits, const at::Tensor& x, const at::Tensor& w,
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

}  // namespace

at::Tensor chunk_logits(const at::Tensor& x, const at::Tensor& w) {
  const auto wide = accumulate_type(x);
  return x.is_cuda() && x.scalar_type() != wide ? at::mm(x, w.t(), wide)  // bf16 in, fp32 out
                                                : at::mm(x.to(wide), w.to(wide).t());
}

int64_t vocab_chunk_tokens(const at::Tensor& w, int64_t T) {
  const int64_t num_bytes = (w.is_cuda() ? int64_t{512} : int64_t{64}) << 20;
  const int64_t most = std::max<int64_t>(1, num_bytes / (w.size(0) * 4));
  if (T <= most) return std::max<int64_t>(1, T);
  const int64_t num_chunks = (T + most - 1) / most;
  const int64_t even = (T + num_chunks - 1) / num_chunks;
  return std::min(most, (even + kRowMultiple - 1) / kRowMultiple * kRowMultiple);
}

void check_vocab_inputs(const char* op, const VocabHead& head, const at::Tensor& targets,
                        const at::Tensor& weight, const at::Tensor& d_w) {
  const auto& [x, w] = head;
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
  // Values on a GPU are not looked at: the host would wait for them. The kernel guards its reads.
  if (targets.numel() == 0 || targets.is_cuda()) return;
  const auto [lowest, highest] = at::aminmax(targets);
  const int64_t low = lowest.item<int64_t>(), high = highest.item<int64_t>();
  TORCH_CHECK(low >= 0 && high < w.size(0), op, ": expected targets in [0, ", w.size(0), "), got ",
              low < 0 ? low : high);
}

void check_ce_shares(const DistillConfig& config, const at::Tensor& targets, const at::Tensor& x,
                     const char* op) {
  const at::Tensor& by_token = config.ce_weight_T;
  double lowest = config.ce_weight, highest = lowest;
  if (by_token.defined()) {
    check_shape(by_token, {x.size(0)}, op, "ce_weight_T");
    TORCH_CHECK(by_token.device() == x.device() && at::isFloatingType(by_token.scalar_type()), op,
                ": expected floating-point ce_weight_T on ", x.device(), ", got ",
                by_token.scalar_type(), " on ", by_token.device());
    if (!x.is_cuda() && x.size(0) > 0) {
      lowest = by_token.min().item<double>();
      highest = by_token.max().item<double>();
    }
  }
  TORCH_CHECK(lowest >= 0 && highest <= 1, op, ": expected ce_weight in [0, 1], got ",
              lowest >= 0 ? highest : lowest);
  TORCH_CHECK(targets.defined() || !config.wants_ce(), op,
              ": expected targets, as the cross-entropy has a share in the loss");
}

VocabLoss vocab_loss(const VocabHead& student, const VocabTeacher& teacher,
                     const at::Tensor& targets, const at::Tensor& weight, const VocabRule& rule,
                     at::Tensor* dx, const at::Tensor& d_w) {
  const at::NoGradGuard no_grad;
  const auto& [x, w] = student;
  const int64_t T = x.size(0);
  const auto options = x.options().dtype(accumulate_type(x));
  VocabLoss result;
  result.loss_T = at::empty({T}, options);
  const bool distils = teacher.whole != nullptr || teacher.topk != nullptr;
  if (distils) result.kl_T = at::empty({T}, options);
  if (distils && targets.defined()) result.ce_T = at::empty({T}, options);
  if (dx != nullptr) *dx = at::empty_like(x);
  const int64_t chunk = vocab_chunk_tokens(w, T);
  for (int64_t begin = 0; begin < T; begin += chunk) {
    const auto rows_of = [&](const at::Tensor& t) {
      return t.defined() ? t.narrow(0, begin, std::min(chunk, T - begin)) : t;
    };
    // Freed at the end of each turn: the next one gets the same memory from the allocator.
    at::Tensor teacher_logits;
    if (teacher.whole != nullptr) {
      teacher_logits =
          chunk_logits(rows_of(teacher.whole->x), teacher.whole->w).to(options.dtype());
    }
    VocabRows rows{
        chunk_logits(rows_of(x), w), teacher_logits,       rows_of(targets),    rows_of(weight),
        rows_of(result.loss_T),      rows_of(result.kl_T), rows_of(result.ce_T)};
    if (teacher.topk != nullptr) {
      rows.top = {rows_of(teacher.topk->ids), rows_of(teacher.topk->log_p),
                  rows_of(teacher.topk->log_tail)};
    }
    rows.ce_weight = rows_of(rule.config.ce_weight_T);
    const at::Tensor d_logits = vocab_rows(rows, rule, dx != nullptr, x.scalar_type());
    if (dx != nullptr) chunk_backward(d_logits, rows_of(x), w, rows_of(*dx), d_w);
  }
  result.loss_sum = at::mul(weight, result.loss_T).sum(at::kDouble);
  return result;
}

}  // namespace sala
