// The loop over units without gradient.
#include "model/forward.h"

namespace sala {

at::Tensor run_units(const Model& model, Lender& weights, size_t first, size_t last, at::Tensor x,
                     const Env& env, std::span<const size_t> after) {
  const at::NoGradGuard no_grad;
  for (size_t u = first; u < last; ++u) {
    const Lease lease = weights.lease(model.units()[u]->parts);
    weights.hint(u + 1 < last ? std::span<const size_t>(model.units()[u + 1]->parts) : after);
    x = model.units()[u]->forward(lease, x, env, nullptr);
  }
  return x;
}

at::Tensor hidden(const Model& model, Lender& weights, const Env& env) {
  const at::NoGradGuard no_grad;
  const std::vector<size_t> head = model.head_parts();
  at::Tensor x = run_units(model, weights, 0, model.units().size(), {}, env, head);
  return model.final_norm().forward(weights.lease(head), x, env, nullptr);
}

at::Tensor logits(const Model& model, Lender& weights, const at::Tensor& hidden) {
  const at::NoGradGuard no_grad;
  const double scale = model.config().logit_scale;
  const at::Tensor scaled = scale == 1.0 ? hidden : hidden * scale;
  const Lease head = weights.lease(model.head_parts());
  return at::linear(scaled, model.head_weight(head))
      .to(at::promote_types(at::kFloat, hidden.scalar_type()));
}

}  // namespace sala
