// Rows of logits against a cut teacher, as LibTorch operations on CPU and CUDA alike: every pass is
// over one chunk of logits, which is overwritten. kernels/topk.h has the formulas.

#include <limits>

#include "kernels/vocabulary/rows.h"

namespace sala {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// p log(p / q), 0 where p is.
at::Tensor gap(const at::Tensor& log_p, const at::Tensor& log_q) {
  return at::mul(log_p.exp(), log_p - log_q).masked_fill_(log_p == -kInfinity, 0);
}

// What a row's gradient at the logits is made of, by its parts of the loss.
struct RowShares {
  at::Tensor weight_n1;     // of the row, with the logits' scale
  at::Tensor kl_n1, ce_n1;  // ce: of a cross-entropy at the KL's own temperature
};

at::Tensor gradient(const CutRows& q, const TopkTeacher& teacher, const RowShares& shares) {
  const auto at_bucket = [&](const at::Tensor& log_q, const at::Tensor& log_p) {
    return log_q.exp().mul_(shares.kl_n1 + shares.ce_n1).sub_(log_p.exp().mul_(shares.kl_n1));
  };
  const at::Tensor tail_n1 = at_bucket(q.log_tail, teacher.log_tail.unsqueeze(1));
  at::Tensor d_nV = q.inside_tail;
  d_nV.mul_(tail_n1.mul_(shares.weight_n1));
  return d_nV.scatter_(1, teacher.ids, at_bucket(q.log_top, teacher.log_p).mul_(shares.weight_n1));
}

}  // namespace

CutRows cut_rows(at::Tensor z, const at::Tensor& ids) {
  const at::Tensor top_nk = z.gather(1, ids);
  at::Tensor sum_n1 = top_nk.logsumexp(1, /*keepdim=*/true);
  if (ids.size(1) == z.size(1)) {
    return {top_nk - sum_n1, at::full_like(sum_n1, -kInfinity), z.zero_(), sum_n1};
  }
  z.scatter_(1, ids, -kInfinity);
  const at::Tensor largest_n1 = z.amax(1, /*keepdim=*/true);
  at::Tensor inside_nV = at::softmax(z, 1);
  // The largest one's share tells the sum: softmax has made it already.
  const at::Tensor tail_n1 = largest_n1 - inside_nV.amax(1, /*keepdim=*/true).log_();
  sum_n1 = at::logaddexp(sum_n1, tail_n1);
  return {top_nk - sum_n1, tail_n1 - sum_n1, inside_nV, sum_n1};
}

at::Tensor topk_rows(const VocabRows& rows, const VocabRule& rule, bool want_gradient) {
  const double temperature = rule.config.temperature;
  const bool wants_ce = rule.config.wants_ce();
  const at::Tensor ce_n1 = ce_shares(rows, rule), kl_n1 = 1 - ce_n1;
  const bool one_temperature = temperature == 1;
  at::Tensor z_nV = rows.logits;
  if (rule.logit_scale != 1) z_nV.mul_(rule.logit_scale);
  at::Tensor target_n1, z_target_n1, hard_nV;  // hard: softmax at temperature one
  if (rows.targets.defined()) {
    target_n1 = rows.targets.unsqueeze(1);
    z_target_n1 = z_nV.gather(1, target_n1);
    if (!one_temperature) rows.ce.copy_((z_nV.logsumexp(1, true) - z_target_n1).squeeze(1));
    if (!one_temperature && wants_ce && want_gradient) hard_nV = at::softmax(z_nV, 1);
  }
  if (!one_temperature) z_nV.div_(temperature);
  const CutRows q = cut_rows(z_nV, rows.top.ids);
  if (rows.targets.defined() && one_temperature) {
    rows.ce.copy_((q.log_sum - z_target_n1).squeeze(1));
  }
  const at::Tensor kl_n = gap(rows.top.log_p, q.log_top).sum(1);
  rows.kl.copy_(
      kl_n.add_(gap(rows.top.log_tail, q.log_tail.squeeze(1))).mul_(temperature * temperature));
  rows.loss.copy_(rows.kl).mul_(kl_n1.squeeze(1));
  if (wants_ce) rows.loss.addcmul_(rows.ce, ce_n1.squeeze(1));
  if (!want_gradient) return {};

  const at::Tensor weight_n1 =
      rows.weight.to(z_nV.scalar_type()).unsqueeze(1).mul(rule.logit_scale);
  const at::Tensor soft_ce_n1 = one_temperature ? ce_n1 : at::zeros_like(ce_n1);
  at::Tensor d_nV = gradient(q, rows.top, {weight_n1, kl_n1 * temperature, soft_ce_n1});
  if (!wants_ce) return d_nV;
  const at::Tensor hard_n1 = weight_n1 * ce_n1;
  if (hard_nV.defined()) d_nV.addcmul_(hard_nV, hard_n1);
  return d_nV.scatter_add_(1, target_n1, hard_n1.neg());
}

}  // namespace sala
