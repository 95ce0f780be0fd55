// Door of both ops of kernels/topk.h, and the loop that cuts a teacher.
#include "kernels/topk.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/vocabulary/chunks.h"

namespace sala {
namespace {

void check_teacher(const at::Tensor& x, const at::Tensor& w, const TopkTeacher& teacher,
                   const at::Tensor& targets, const DistillConfig& config) {
  const char* op = "linear_topk_kl";
  TORCH_CHECK(teacher.defined() && teacher.ids.dim() == 2, op,
              ": expected the teacher's ids (T, k), got ",
              teacher.defined() ? "another shape" : "none");
  const int64_t T = x.size(0), k = teacher.ids.size(1);
  check_shape(teacher.ids, {T, k}, op, "the teacher's ids");
  TORCH_CHECK(teacher.ids.scalar_type() == at::kLong && teacher.ids.device() == x.device(), op,
              ": expected the teacher's ids as int64 on ", x.device(), ", got ",
              teacher.ids.scalar_type(), " on ", teacher.ids.device());
  TORCH_CHECK(k >= 1 && k <= w.size(0), op, ": expected 1 to ", w.size(0),
              " ids of the teacher for a token, got ", k);
  check_statistic(teacher.log_p, {T, k}, x, op, "the teacher's log_p");
  check_statistic(teacher.log_tail, {T}, x, op, "the teacher's log_tail");
  TORCH_CHECK(config.temperature > 0, op, ": expected a positive temperature, got ",
              config.temperature);
  check_ce_shares(config, targets, x, op);
  if (x.is_cuda() || T == 0) return;
  const auto [lowest, highest] = at::aminmax(teacher.ids);
  const int64_t low = lowest.item<int64_t>(), high = highest.item<int64_t>();
  TORCH_CHECK(low >= 0 && high < w.size(0), op, ": expected ids of the teacher in [0, ", w.size(0),
              "), got ", low < 0 ? low : high);
}

}  // namespace

TopkTeacher linear_topk(const at::Tensor& x, const at::Tensor& w, double logit_scale,
                        double temperature, int64_t k) {
  const at::NoGradGuard no_grad;
  const char* op = "linear_topk";
  check_input(x, 2, op, "x");
  check_input(w, 2, op, "w");
  check_like(w, x, op, "w");
  TORCH_CHECK(k >= 1 && k <= w.size(0), op, ": expected k in 1 to ", w.size(0), ", got ", k);
  TORCH_CHECK(temperature > 0, op, ": expected a positive temperature, got ", temperature);
  const int64_t T = x.size(0), chunk = vocab_chunk_tokens(w, T);
  const auto wide = x.options().dtype(accumulate_type(x));
  TopkTeacher teacher{at::empty({T, k}, x.options().dtype(at::kLong)), at::empty({T, k}, wide),
                      at::empty({T}, wide)};
  for (int64_t begin = 0; begin < T; begin += chunk) {
    const int64_t count = std::min(chunk, T - begin);
    at::Tensor z = chunk_logits(x.narrow(0, begin, count), w).mul_(logit_scale / temperature);
    const at::Tensor ids = std::get<1>(z.topk(k, 1));
    const CutRows cut = cut_rows(z, ids);
    teacher.ids.narrow(0, begin, count).copy_(ids);
    teacher.log_p.narrow(0, begin, count).copy_(cut.log_top);
    teacher.log_tail.narrow(0, begin, count).copy_(cut.log_tail.squeeze(1));
  }
  return teacher;
}

VocabLoss linear_topk_kl(const at::Tensor& x, const at::Tensor& w, double logit_scale,
                         const TopkTeacher& teacher, const at::Tensor& targets,
                         const at::Tensor& weight, const DistillConfig& config, at::Tensor* dx,
                         const at::Tensor& d_w) {
  const VocabHead student{x, w};
  check_vocab_inputs("linear_topk_kl", student, targets, weight, d_w);
  check_teacher(x, w, teacher, targets, config);
  const VocabRule rule{logit_scale, 1.0, config};
  return vocab_loss(student, {.topk = &teacher}, targets, weight, rule, dx, d_w);
}

}  // namespace sala
