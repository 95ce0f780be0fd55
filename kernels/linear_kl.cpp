// Distillation over the full vocabulary (Hinton et al. 2015), loss and gradients in one pass over
// chunks of tokens. With student and teacher logits z, z' and temperature K:
//   kl = K^2 KL(softmax(z'/K) || softmax(z/K)),   dkl/dz = K (softmax(z/K) - softmax(z'/K))
//   loss = (1 - a) kl + a ce,  ce and its gradient as in linear_cross_entropy at temperature one.

#include "kernels/ops.h"
#include "kernels/vocab_chunks.h"

namespace sala {
namespace {

void check_teacher(const at::Tensor& x, const at::Tensor& w, const at::Tensor& x_teacher,
                   const at::Tensor& w_teacher, const at::Tensor& targets,
                   const DistillConfig& config) {
  const char* op = "linear_kl";
  check_input(x_teacher, 2, op, "x_teacher");
  check_input(w_teacher, 2, op, "w_teacher");
  check_like(w_teacher, x_teacher, op, "w_teacher");
  TORCH_CHECK(x_teacher.size(0) == x.size(0), op, ": expected ", x.size(0),
              " tokens of the teacher, got ", x_teacher.size(0));
  check_shape(w_teacher, {w.size(0), x_teacher.size(1)}, op, "w_teacher");
  TORCH_CHECK(config.temperature > 0, op, ": expected a positive temperature, got ",
              config.temperature);
  TORCH_CHECK(config.ce_weight >= 0 && config.ce_weight <= 1, op,
              ": expected ce_weight in [0, 1], ", "got ", config.ce_weight);
  TORCH_CHECK(targets.defined() || config.ce_weight == 0, op,
              ": expected targets, as ce_weight is ", config.ce_weight);
}

// sum over V of p' (log p' - log p); `log_teacher` becomes p'.
at::Tensor divergence(at::Tensor& log_teacher, const at::Tensor& log_student) {
  at::Tensor gap = at::sub(log_teacher, log_student);
  log_teacher.exp_();
  return gap.mul_(log_teacher).sum(1);
}

}  // namespace

VocabLoss linear_kl(const at::Tensor& x, const at::Tensor& w, double logit_scale,
                    const at::Tensor& x_teacher, const at::Tensor& w_teacher,
                    double teacher_logit_scale, const at::Tensor& targets, const at::Tensor& weight,
                    const DistillConfig& config, at::Tensor* dx, const at::Tensor& d_w) {
  check_vocab_inputs("linear_kl", x, w, targets, weight, d_w);
  check_teacher(x, w, x_teacher, w_teacher, targets, config);
  const at::NoGradGuard no_grad;
  const int64_t T = x.size(0);
  const double temperature = config.temperature;
  const double kl_share = 1 - config.ce_weight, ce_share = config.ce_weight;
  const auto options = x.options().dtype(accumulate_type(x));
  VocabLoss result;
  result.kl_T = at::empty({T}, options);
  if (targets.defined()) result.ce_T = at::empty({T}, options);
  if (dx != nullptr) *dx = at::empty_like(x);
  const int64_t chunk = vocab_chunk_tokens(w);
  for (int64_t begin = 0; begin < T; begin += chunk) {
    const int64_t n = std::min(chunk, T - begin);
    const at::Tensor x_nC = x.narrow(0, begin, n);
    at::Tensor teacher_nV = at::log_softmax(
        chunk_logits(x_teacher.narrow(0, begin, n), w_teacher, teacher_logit_scale / temperature)
            .to(options.dtype()),
        1);
    at::Tensor logits_nV = chunk_logits(x_nC, w, logit_scale);
    // The cross-entropy is at temperature one; its gradient is kept until the KL's is there.
    at::Tensor d_ce_nV;
    at::Tensor target_n1;
    if (targets.defined()) {
      target_n1 = targets.narrow(0, begin, n).unsqueeze(1);
      at::Tensor log_p = at::log_softmax(logits_nV, 1);
      result.ce_T.narrow(0, begin, n).copy_(log_p.gather(1, target_n1).squeeze(1).neg_());
      if (ce_share > 0 && dx != nullptr) d_ce_nV = log_p.exp_();
    }
    at::Tensor student_nV = at::log_softmax(logits_nV.div_(temperature), 1);
    result.kl_T.narrow(0, begin, n)
        .copy_(divergence(teacher_nV, student_nV).mul_(temperature * temperature));
    if (dx == nullptr) continue;
    student_nV.exp_().sub_(teacher_nV).mul_(kl_share * temperature);
    if (d_ce_nV.defined()) {
      student_nV.add_(d_ce_nV, ce_share);
      student_nV.scatter_add_(1, target_n1, at::full({n, 1}, -ce_share, options));
    }
    student_nV.mul_(weight.narrow(0, begin, n).to(options.dtype()).unsqueeze(1).mul(logit_scale));
    chunk_backward(student_nV, x_nC, w, dx->narrow(0, begin, n), d_w);
  }
  result.loss_T = at::mul(result.kl_T, kl_share);
  if (ce_share > 0) result.loss_T.add_(result.ce_T, ce_share);
  result.loss_sum = weighted_sum(weight, result.loss_T);
  return result;
}

}  // namespace sala
