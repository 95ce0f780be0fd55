// Losses on the final norm's output, without a (T, V) tensor.
#include "trainer/losses.h"

#include "model/forward.h"
#include "trainer/teacher/cut.h"

namespace sala {

namespace {

at::Tensor weighted_sum(const at::Tensor& values_T, const at::Tensor& weight_T) {
  return (values_T * weight_T).sum(at::kDouble);
}

at::Tensor with_sources(std::vector<at::Tensor> sums, const at::Tensor& loss_T,
                        const Batch& batch) {
  for (int64_t source = 0; source < batch.num_sources; ++source) {
    const at::Tensor weight_T = batch.loss_weight * (batch.source == source);
    sums.push_back(weighted_sum(loss_T, weight_T));
    sums.push_back(weight_T.sum(at::kDouble));
  }
  return at::stack(sums);
}

at::Tensor distillation_sums(const VocabLoss& loss, const at::Tensor& weight_T,
                             const Batch& batch) {
  return with_sources(
      {loss.loss_sum, weighted_sum(loss.kl_T, weight_T), weighted_sum(loss.ce_T, weight_T)},
      loss.loss_T, batch);
}

}  // namespace

at::Tensor NextTokenLoss::forward_backward(const LeasedHead& head, const at::Tensor& x,
                                           const Batch& batch, at::Tensor& dx,
                                           const at::Tensor& d_head) {
  const at::Tensor weight = batch.loss_weight / batch.global_weight;
  const VocabLoss loss = linear_cross_entropy(x, head.model.head_weight(head.lease), batch.targets,
                                              weight, head.model.config().logit_scale, &dx, d_head);
  return with_sources({loss.loss_sum, at::zeros_like(loss.loss_sum), loss.loss_sum}, loss.loss_T,
                      batch);
}

DistillConfig LossMix::of(const Batch& batch) {
  DistillConfig config = config_;
  if (ce_weights_.empty()) return config;
  if (!on_device_.defined()) {
    on_device_ = at::tensor(ce_weights_, at::kFloat).to(batch.source.device());
  }
  config.ce_weight_T = on_device_.index_select(0, batch.source);
  return config;
}

void DistillLoss::prepare(const Batch& batch) {
  x_teacher_ =
      hidden(teacher_.model, teacher_.parameters, teacher_.model.env(batch, /*sparse=*/false));
}

at::Tensor DistillLoss::forward_backward(const LeasedHead& head, const at::Tensor& x,
                                         const Batch& batch, at::Tensor& dx,
                                         const at::Tensor& d_head) {
  const Lease teacher_head = teacher_.parameters.lease(teacher_.model.head_parts());
  const at::Tensor weight = batch.loss_weight / batch.global_weight;
  const VocabLoss loss =
      linear_kl(x, head.model.head_weight(head.lease), head.model.config().logit_scale, x_teacher_,
                teacher_.model.head_weight(teacher_head), teacher_.model.config().logit_scale,
                batch.targets, weight, mix_.of(batch), &dx, d_head);
  x_teacher_.reset();
  return distillation_sums(loss, weight, batch);
}

TopkDistillLoss::TopkDistillLoss(std::unique_ptr<CutTeacher> teacher, LossMix mix)
    : teacher_(std::move(teacher)), mix_(std::move(mix)) {}
TopkDistillLoss::~TopkDistillLoss() = default;
void TopkDistillLoss::begin_step(const StepRows& rows) { teacher_->begin_step(rows); }
void TopkDistillLoss::end_step() { teacher_->end_step(); }
void TopkDistillLoss::pass_over(const StepRows& rows) { teacher_->pass_over(rows); }
std::shared_future<void> TopkDistillLoss::make_durable() { return teacher_->make_durable(); }
void TopkDistillLoss::prepare(const Batch& batch) { words_ = teacher_->of(batch); }

at::Tensor TopkDistillLoss::forward_backward(const LeasedHead& head, const at::Tensor& x,
                                             const Batch& batch, at::Tensor& dx,
                                             const at::Tensor& d_head) {
  const at::Tensor weight = batch.loss_weight / batch.global_weight;
  const VocabLoss loss =
      linear_topk_kl(x, head.model.head_weight(head.lease), head.model.config().logit_scale, words_,
                     batch.targets, weight, mix_.of(batch), &dx, d_head);
  words_ = {};
  return distillation_sums(loss, weight, batch);
}

}  // namespace sala
