// swiglu in plain loops.

#include <cmath>

#include "kernels/twins/twins.h"
#include "kernels/twins/values.h"

namespace sala {

at::Tensor swiglu_forward_twin(const at::Tensor& gate, const at::Tensor& up) {
  const auto g = values_of(gate), u = values_of(up);
  std::vector<double> y(g.size());
  for (size_t i = 0; i < y.size(); ++i) y[i] = g[i] / (1 + std::exp(-g[i])) * u[i];
  return tensor_of(y, gate.sizes(), gate.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> swiglu_backward_twin(const at::Tensor& dy,
                                                        const at::Tensor& gate,
                                                        const at::Tensor& up) {
  const auto d = values_of(dy), g = values_of(gate), u = values_of(up);
  std::vector<double> dgate(g.size()), dup(g.size());
  for (size_t i = 0; i < g.size(); ++i) {
    const double sigmoid = 1 / (1 + std::exp(-g[i]));
    dgate[i] = d[i] * u[i] * sigmoid * (1 + g[i] * (1 - sigmoid));
    dup[i] = d[i] * g[i] * sigmoid;
  }
  return {tensor_of(dgate, gate.sizes(), gate.scalar_type()),
          tensor_of(dup, gate.sizes(), gate.scalar_type())};
}

}  // namespace sala
