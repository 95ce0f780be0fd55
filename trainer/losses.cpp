// Losses on the final norm's output, without a (T, V) tensor.
#include "trainer/losses.h"

namespace sala {

namespace {

// The fp32 gradient view of the vocabulary projection; undefined where it does not train.
at::Tensor head_gradient(Model& model) {
  Weights& part = model.parts()[model.head_part()];
  if (!model.head_weight().requires_grad()) return {};
  part.ensure_grad();
  const Entry& entry = part.layout().entries[model.head_entry()];
  return part.grad.narrow(0, entry.offset, entry.num_elements()).view(entry.shape);
}

at::Tensor weighted_sum(const at::Tensor& values_T, const at::Tensor& weight_T) {
  return (values_T * weight_T).sum(at::kDouble);
}

}  // namespace

at::Tensor zero_loss(at::Device device) {
  return at::zeros({3}, at::TensorOptions().dtype(at::kDouble).device(device));
}

LossValue to_host(const at::Tensor& sums) {
  const at::Tensor cpu = sums.cpu();
  const double* s = cpu.const_data_ptr<double>();
  return {s[0], s[1], s[2]};
}

at::Tensor NextTokenLoss::forward_backward(Model& model, const at::Tensor& x, const Batch& batch,
                                           at::Tensor& dx) {
  const at::Tensor weight = batch.loss_weight / batch.global_weight;
  const VocabLoss loss =
      linear_cross_entropy(x, model.head_weight().detach(), batch.targets, weight,
                           model.config().logit_scale, &dx, head_gradient(model));
  return at::stack({loss.loss_sum, at::zeros_like(loss.loss_sum), loss.loss_sum});
}

at::Tensor DistillLoss::forward_backward(Model& model, const at::Tensor& x, const Batch& batch,
                                         at::Tensor& dx) {
  const at::Tensor x_teacher = teacher_.hidden(teacher_.env(batch, /*sparse=*/false));
  const at::Tensor weight = batch.loss_weight / batch.global_weight;
  const VocabLoss loss = linear_kl(x, model.head_weight().detach(), model.config().logit_scale,
                                   x_teacher, teacher_.head_weight(), teacher_.config().logit_scale,
                                   batch.targets, weight, config_, &dx, head_gradient(model));
  return at::stack(
      {loss.loss_sum, weighted_sum(loss.kl_T, weight), weighted_sum(loss.ce_T, weight)});
}

}  // namespace sala
