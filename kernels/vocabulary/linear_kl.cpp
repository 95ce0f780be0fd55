// Distillation over the full vocabulary (Hinton et al. 2015), loss and gradients in one pass over
// chunks of tokens. With student and teacher logits z, z' and temperature K:
//   kl = K^2 KL(softmax(z'/K) || softmax(z/K)),   dkl/dz = K (softmax(z/K) - softmax(z'/K))
//   loss = (1 - a) kl + a ce,  ce and its gradient as in linear_cross_entropy at temperature one.

#include "kernels/check.h"
#include "kernels/ops.h"
#include "kernels/vocabulary/chunks.h"

namespace sala {
namespace {

void check_teacher(const VocabHead& student, const VocabHead& teacher, const at::Tensor& targets,
                   const DistillConfig& config) {
  const char* op = "linear_kl";
  check_input(teacher.x, 2, op, "x_teacher");
  check_input(teacher.w, 2, op, "w_teacher");
  check_like(teacher.w, teacher.x, op, "w_teacher");
  TORCH_CHECK(teacher.x.device() == student.x.device(), op, ": expected the teacher on ",
              student.x.device(), ", got ", teacher.x.device());
  TORCH_CHECK(teacher.x.size(0) == student.x.size(0), op, ": expected ", student.x.size(0),
              " tokens of the teacher, got ", teacher.x.size(0));
  check_shape(teacher.w, {student.w.size(0), teacher.x.size(1)}, op, "w_teacher");
  TORCH_CHECK(config.temperature > 0, op, ": expected a positive temperature, got ",
              config.temperature);
  check_ce_shares(config, targets, student.x, op);
}

}  // namespace

VocabLoss linear_kl(const at::Tensor& x, const at::Tensor& w, double logit_scale,
                    const at::Tensor& x_teacher, const at::Tensor& w_teacher,
                    double teacher_logit_scale, const at::Tensor& targets, const at::Tensor& weight,
                    const DistillConfig& config, at::Tensor* dx, const at::Tensor& d_w) {
  const VocabHead student{x, w}, teacher{x_teacher, w_teacher};
  check_vocab_inputs("linear_kl", student, targets, weight, d_w);
  check_teacher(student, teacher, targets, config);
  const VocabRule rule{logit_scale, teacher_logit_scale, config};
  return vocab_loss(student, {.whole = &teacher}, targets, weight, rule, dx, d_w);
}

}  // namespace sala
