// Cross-entropy of x W^T against target ids, loss and gradients in one pass over chunks of tokens:
// loss = -log softmax(z)[target], dloss/dz = softmax(z) - onehot(target), z = logit_scale * x W^T.

#include "kernels/ops.h"
#include "kernels/vocab_chunks.h"

namespace sala {

VocabLoss linear_cross_entropy(const at::Tensor& x, const at::Tensor& w, const at::Tensor& targets,
                               const at::Tensor& weight, double logit_scale, at::Tensor* dx,
                               const at::Tensor& d_w) {
  const char* op = "linear_cross_entropy";
  TORCH_CHECK(targets.defined(), op, ": expected targets, got an undefined tensor");
  check_vocab_inputs(op, x, w, targets, weight, d_w);
  const at::NoGradGuard no_grad;
  const int64_t T = x.size(0);
  VocabLoss result;
  result.loss_T = at::empty({T}, x.options().dtype(accumulate_type(x)));
  if (dx != nullptr) *dx = at::empty_like(x);
  const int64_t chunk = vocab_chunk_tokens(w);
  for (int64_t begin = 0; begin < T; begin += chunk) {
    const int64_t n = std::min(chunk, T - begin);
    const at::Tensor x_nC = x.narrow(0, begin, n);
    const at::Tensor target_n1 = targets.narrow(0, begin, n).unsqueeze(1);
    at::Tensor p_nV = at::log_softmax(chunk_logits(x_nC, w, logit_scale), 1);
    result.loss_T.narrow(0, begin, n).copy_(p_nV.gather(1, target_n1).squeeze(1).neg_());
    if (dx == nullptr) continue;
    const at::Tensor factor_n1 =
        weight.narrow(0, begin, n).to(p_nV.scalar_type()).unsqueeze(1).mul(logit_scale);
    p_nV.exp_().mul_(factor_n1).scatter_add_(1, target_n1, factor_n1.neg());
    chunk_backward(p_nV, x_nC, w, dx->narrow(0, begin, n), d_w);
  }
  result.loss_sum = weighted_sum(weight, result.loss_T);
  return result;
}

}  // namespace sala
