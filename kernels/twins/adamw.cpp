// AdamW in plain loops, straight from the formula.

#include <cmath>

#include "kernels/twins/twins.h"
#include "kernels/twins/values.h"

namespace sala {

void adamw_step_twin(at::Tensor& master, at::Tensor& m, at::Tensor& v, const at::Tensor& grad,
                     at::Tensor copy, const AdamW& o) {
  auto w_new = values_of(master), m_new = values_of(m), v_new = values_of(v);
  const auto g = values_of(grad);
  for (size_t i = 0; i < g.size(); ++i) {
    const double scaled = g[i] * o.grad_scale;
    m_new[i] = o.beta1 * m_new[i] + (1 - o.beta1) * scaled;
    v_new[i] = o.beta2 * v_new[i] + (1 - o.beta2) * scaled * scaled;
    const double mean = m_new[i] / (1 - std::pow(o.beta1, o.step));
    const double square = v_new[i] / (1 - std::pow(o.beta2, o.step));
    w_new[i] -= o.lr * mean / (std::sqrt(square) + o.eps) + o.lr * o.weight_decay * w_new[i];
  }
  master.copy_(tensor_of(w_new, master.sizes(), at::kDouble));
  m.copy_(tensor_of(m_new, m.sizes(), at::kDouble));
  v.copy_(tensor_of(v_new, v.sizes(), at::kDouble));
  if (copy.defined()) copy.copy_(master.view_as(copy));
}

}  // namespace sala
