// Rows of the embedding, and their gradient; the final norm.
#include "model/ends.h"

#include "kernels/ops.h"

namespace sala {

at::Tensor EmbeddingUnit::forward(const Lease& weights, const at::Tensor&, const Env& env,
                                  Saved*) const {
  at::Tensor x = at::embedding(weights[0]["embed_tokens.weight"], env.batch->ids);
  if (config_.embedding_scale != 1.0) x.mul_(config_.embedding_scale);
  return x;
}

// One sum per row in the order of the tokens, the same bits at every call: LibTorch's index_add is
// a loop on the CPU and atomics on CUDA, where index_put with accumulation sorts.
at::Tensor EmbeddingUnit::backward(const Lease&, const at::Tensor& dy, const Env& env, Saved&,
                                   std::span<Gradient* const> gradients) const {
  at::Tensor sum = gradients[0]->view("embed_tokens.weight");
  if (!sum.defined()) return {};
  at::Tensor rows = dy.to(sum.scalar_type());
  if (config_.embedding_scale != 1.0) rows = rows * config_.embedding_scale;
  if (sum.is_cuda()) {
    at::index_put_(sum, {env.batch->ids}, rows, /*accumulate=*/true);
  } else {
    sum.index_add_(0, env.batch->ids, rows);
  }
  return {};
}

at::Tensor FinalNormUnit::forward(const Lease& weights, const at::Tensor& x, const Env&,
                                  Saved* saved) const {
  auto [y, rstd] = rmsnorm_forward(x, weights[0]["norm.weight"], config_.rms_eps);
  if (saved == nullptr) return y;
  const bool again = saved->trimmed();
  saved->keep("final_rstd", rstd, Cost::kElementwise);
  saved->made_again();
  return again ? at::Tensor() : y;
}

at::Tensor FinalNormUnit::backward(const Lease& weights, const at::Tensor& dy, const Env&,
                                   Saved& saved, std::span<Gradient* const> gradients) const {
  auto [dx, dweight] =
      rmsnorm_backward(dy, saved.input, weights[0]["norm.weight"], saved.take("final_rstd"));
  gradients[0]->add("norm.weight", dweight);
  return dx;
}

}  // namespace sala
