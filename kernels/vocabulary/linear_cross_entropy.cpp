// Cross-entropy of x W^T against target ids, loss and gradients in one pass over chunks of tokens:
// loss = -log softmax(z)[target], dloss/dz = softmax(z) - onehot(target), z = logit_scale * x W^T.

#include "kernels/ops.h"
#include "kernels/vocabulary/chunks.h"

namespace sala {

VocabLoss linear_cross_entropy(const at::Tensor& x, const at::Tensor& w, const at::Tensor& targets,
                               const at::Tensor& weight, double logit_scale, at::Tensor* dx,
                               const at::Tensor& d_w) {
  const char* op = "linear_cross_entropy";
  TORCH_CHECK(targets.defined(), op, ": expected targets, got an undefined tensor");
  const VocabHead head{x, w};
  check_vocab_inputs(op, head, targets, weight, d_w);
  const VocabRule rule{logit_scale, 1.0, {.temperature = 1.0, .ce_weight = 1.0}};
  return vocab_loss(head, {}, targets, weight, rule, dx, d_w);
}

}  // namespace sala
