// The gated output norm in plain loops.

#include <cmath>

#include "kernels/check.h"
#include "kernels/twins/twins.h"
#include "kernels/twins/values.h"

namespace sala {

std::tuple<at::Tensor, at::Tensor> gated_norm_forward_twin(const at::Tensor& o, const at::Tensor& z,
                                                           const at::Tensor& weight, double eps) {
  at::Tensor n = o, rstd;
  if (weight.defined()) std::tie(n, rstd) = rmsnorm_forward_twin(o, weight, eps);
  auto y = values_of(n);
  const auto gate = values_of(z);
  for (size_t i = 0; i < y.size(); ++i) y[i] /= 1 + std::exp(-gate[i]);
  return {tensor_of(y, o.sizes(), o.scalar_type()), rstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> gated_norm_backward_twin(const at::Tensor& dy,
                                                                        const at::Tensor& o,
                                                                        const at::Tensor& z,
                                                                        const at::Tensor& weight,
                                                                        const at::Tensor& rstd) {
  const auto g = values_of(dy), in = values_of(o), gate = values_of(z), w = values_of(weight),
             r = values_of(rstd);
  const int64_t T = o.size(0), C = o.size(1);
  std::vector<double> d_o(in.size()), dz(in.size()), dweight(C);
  for (int64_t t = 0; t < T; ++t) {
    double mean = 0;  // of (gradient at the normalised value) * (normalised value)
    for (int64_t c = 0; c < C; ++c) {
      const int64_t i = t * C + c;
      const double sigmoid = 1 / (1 + std::exp(-gate[i]));
      const double n = w.empty() ? in[i] : in[i] * r[t];
      const double y = w.empty() ? n : n * w[c];
      dz[i] = g[i] * y * sigmoid * (1 - sigmoid);
      d_o[i] = g[i] * sigmoid;
      if (w.empty()) continue;
      dweight[c] += d_o[i] * n;
      d_o[i] *= w[c];
      mean += d_o[i] * n / C;
    }
    if (w.empty()) continue;
    for (int64_t c = 0; c < C; ++c) {
      const int64_t i = t * C + c;
      d_o[i] = r[t] * (d_o[i] - in[i] * r[t] * mean);
    }
  }
  return {tensor_of(d_o, o.sizes(), o.scalar_type()), tensor_of(dz, o.sizes(), o.scalar_type()),
          weight.defined() ? tensor_of(dweight, {C}, accumulate_type(weight)) : at::Tensor()};
}

}  // namespace sala
