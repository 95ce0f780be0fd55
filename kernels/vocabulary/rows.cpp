// Rows of logits on the CPU as LibTorch operations, on CUDA as one launch of rows.cu; against a cut
// teacher topk_rows.cpp in both places.

#include "kernels/vocabulary/rows.h"

#include <cmath>

#include "kernels/cuda_doors.h"
#include "kernels/vocabulary/rows_launch.h"

namespace sala {
namespace {

#ifdef SALA_CUDA
at::Tensor rows_cuda(const VocabRows& rows, const VocabRule& rule, bool want_gradient,
                     at::ScalarType gradient_type) {
  const at::Tensor& z = rows.logits;
  const bool bf16 = gradient_type == at::kBFloat16;
  TORCH_CHECK(z.scalar_type() == at::kFloat && (bf16 || gradient_type == at::kFloat),
              "losses over the vocabulary: expected bf16 or fp32 inputs on CUDA, got ",
              gradient_type);
  const c10::cuda::CUDAGuard guard(z.device());
  const at::Tensor weight = rows.weight.to(at::kFloat);
  const at::Tensor ce_share =
      rows.ce_weight.defined() ? rows.ce_weight.to(at::kFloat) : at::Tensor();
  at::Tensor d_logits;
  if (want_gradient) d_logits = at::empty(z.sizes(), z.options().dtype(gradient_type));
  const auto input = [](const at::Tensor& t) {
    return t.defined() ? t.const_data_ptr<float>() : nullptr;
  };
  const auto output = [](const at::Tensor& t) {
    return t.defined() ? t.data_ptr<float>() : nullptr;
  };
  const VocabRowPointers pointers{
      z.const_data_ptr<float>(),
      input(rows.teacher_logits),
      rows.targets.defined() ? rows.targets.const_data_ptr<int64_t>() : nullptr,
      weight.const_data_ptr<float>(),
      input(ce_share),
      output(rows.loss),
      output(rows.kl),
      output(rows.ce),
      want_gradient ? d_logits.data_ptr() : nullptr,
      bf16};
  const double temperature = rule.config.temperature;
  const auto f = [](double x) { return static_cast<float>(x); };
  const VocabRowFactors factors{f(M_LOG2E * rule.logit_scale / temperature),
                                f(M_LOG2E * rule.teacher_logit_scale / temperature),
                                f(temperature),
                                f(1 - rule.config.ce_weight),
                                f(rule.config.ce_weight),
                                f(rule.logit_scale)};
  check_launch(
      vocab_rows_cuda(pointers, factors, z.size(0), z.size(1), c10::cuda::getCurrentCUDAStream()));
  return d_logits;
}
#else
at::Tensor rows_cuda(const VocabRows&, const VocabRule&, bool, at::ScalarType) {
  TORCH_CHECK(false, "losses over the vocabulary: this build has no CUDA");
}
#endif

at::Tensor scaled(const at::Tensor& logits, double factor) {
  return factor == 1.0 ? logits : logits.mul_(factor);
}

// What the gradient of every row is multiplied by, (n, 1).
at::Tensor row_factors(const VocabRows& rows, double logit_scale) {
  return rows.weight.to(rows.logits.scalar_type()).unsqueeze(1).mul(logit_scale);
}

at::Tensor cross_entropy_cpu(const VocabRows& rows, const VocabRule& rule, bool want_gradient) {
  const at::Tensor target_n1 = rows.targets.unsqueeze(1);
  at::Tensor p_nV = at::log_softmax(scaled(rows.logits, rule.logit_scale), 1);
  rows.loss.copy_(p_nV.gather(1, target_n1).squeeze(1).neg_());
  if (!want_gradient) return {};
  const at::Tensor factor_n1 = row_factors(rows, rule.logit_scale);
  return p_nV.exp_().mul_(factor_n1).scatter_add_(1, target_n1, factor_n1.neg());
}

// sum over V of p' (log p' - log p); `log_teacher` becomes p'.
at::Tensor divergence(at::Tensor& log_teacher, const at::Tensor& log_student) {
  at::Tensor gap = at::sub(log_teacher, log_student);
  log_teacher.exp_();
  return gap.mul_(log_teacher).sum(1);
}

at::Tensor kl_cpu(const VocabRows& rows, const VocabRule& rule, bool want_gradient) {
  const double temperature = rule.config.temperature;
  const bool wants_ce = rule.config.wants_ce();
  const at::Tensor ce_n1 = ce_shares(rows, rule), kl_n1 = 1 - ce_n1;
  at::Tensor teacher_nV =
      at::log_softmax(scaled(rows.teacher_logits, rule.teacher_logit_scale / temperature), 1);
  const at::Tensor logits_nV = scaled(rows.logits, rule.logit_scale);
  // The cross-entropy is at temperature one; its gradient is kept until the KL's is there.
  at::Tensor d_ce_nV, target_n1;
  if (rows.targets.defined()) {
    target_n1 = rows.targets.unsqueeze(1);
    at::Tensor log_p = at::log_softmax(logits_nV, 1);
    rows.ce.copy_(log_p.gather(1, target_n1).squeeze(1).neg_());
    if (wants_ce && want_gradient) d_ce_nV = log_p.exp_();
  }
  at::Tensor student_nV = at::log_softmax(scaled(logits_nV, 1 / temperature), 1);
  rows.kl.copy_(divergence(teacher_nV, student_nV).mul_(temperature * temperature));
  rows.loss.copy_(rows.kl).mul_(kl_n1.squeeze(1));
  if (wants_ce) rows.loss.addcmul_(rows.ce, ce_n1.squeeze(1));
  if (!want_gradient) return {};
  student_nV.exp_().sub_(teacher_nV).mul_(kl_n1 * temperature);
  if (d_ce_nV.defined()) {
    student_nV.addcmul_(d_ce_nV, ce_n1);
    student_nV.scatter_add_(1, target_n1, ce_n1.neg());
  }
  return student_nV.mul_(row_factors(rows, rule.logit_scale));
}

}  // namespace

at::Tensor ce_shares(const VocabRows& rows, const VocabRule& rule) {
  const at::Tensor& z = rows.logits;
  if (rows.ce_weight.defined()) return rows.ce_weight.to(z.scalar_type()).unsqueeze(1);
  return at::full({z.size(0), 1}, rule.config.ce_weight, z.options());
}

at::Tensor vocab_rows(const VocabRows& rows, const VocabRule& rule, bool want_gradient,
                      at::ScalarType gradient_type) {
  if (rows.top.defined()) return topk_rows(rows, rule, want_gradient);
  if (rows.logits.is_cuda()) return rows_cuda(rows, rule, want_gradient, gradient_type);
  if (!rows.teacher_logits.defined()) return cross_entropy_cpu(rows, rule, want_gradient);
  return kl_cpu(rows, rule, want_gradient);
}

}  // namespace sala
