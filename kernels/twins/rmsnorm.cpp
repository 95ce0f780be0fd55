// rmsnorm and add_rmsnorm in plain loops.

#include <cmath>

#include "kernels/check.h"
#include "kernels/twins/twins.h"
#include "kernels/twins/values.h"

namespace sala {

std::tuple<at::Tensor, at::Tensor> rmsnorm_forward_twin(const at::Tensor& x,
                                                        const at::Tensor& weight, double eps) {
  const auto dtype = x.scalar_type();
  const int64_t C = x.size(-1), rows = x.numel() / C;
  const auto in = values_of(x), w = values_of(weight);
  std::vector<double> y(in.size()), rstd(rows);
  for (int64_t t = 0; t < rows; ++t) {
    double sum = 0;
    for (int64_t c = 0; c < C; ++c) sum += in[t * C + c] * in[t * C + c];
    rstd[t] = 1 / std::sqrt(sum / C + eps);
    for (int64_t c = 0; c < C; ++c) y[t * C + c] = rounded(in[t * C + c] * rstd[t], dtype) * w[c];
  }
  return {tensor_of(y, x.sizes(), dtype),
          tensor_of(rstd, x.sizes().slice(0, x.dim() - 1), accumulate_type(x))};
}

std::tuple<at::Tensor, at::Tensor> rmsnorm_backward_twin(const at::Tensor& dy, const at::Tensor& x,
                                                         const at::Tensor& weight,
                                                         const at::Tensor& rstd) {
  const int64_t C = x.size(-1), rows = x.numel() / C;
  const auto g = values_of(dy), in = values_of(x), w = values_of(weight), r = values_of(rstd);
  std::vector<double> dx(in.size()), dweight(C);
  for (int64_t t = 0; t < rows; ++t) {
    double mean = 0;
    for (int64_t c = 0; c < C; ++c) {
      const double n = in[t * C + c] * r[t];
      mean += g[t * C + c] * w[c] * n / C;
      dweight[c] += g[t * C + c] * n;
    }
    for (int64_t c = 0; c < C; ++c) {
      dx[t * C + c] = r[t] * (g[t * C + c] * w[c] - in[t * C + c] * r[t] * mean);
    }
  }
  return {tensor_of(dx, x.sizes(), x.scalar_type()),
          tensor_of(dweight, {C}, accumulate_type(weight))};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> add_rmsnorm_forward_twin(const at::Tensor& x,
                                                                        const at::Tensor& y,
                                                                        double residual_scale,
                                                                        const at::Tensor& weight,
                                                                        double eps) {
  auto sum = values_of(x);
  const auto in = values_of(y);
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += residual_scale * in[i];
  const at::Tensor h = tensor_of(sum, x.sizes(), x.scalar_type());
  auto [u, rstd] = rmsnorm_forward_twin(h, weight, eps);
  return {h, u, rstd};
}

std::tuple<at::Tensor, at::Tensor> add_rmsnorm_backward_twin(const at::Tensor& du,
                                                             const at::Tensor& dh,
                                                             const at::Tensor& h,
                                                             const at::Tensor& weight,
                                                             const at::Tensor& rstd) {
  const auto wide = [](const at::Tensor& t) { return t.to(at::kCPU, at::kDouble); };
  auto [dx, dweight] = rmsnorm_backward_twin(wide(du), wide(h), wide(weight), rstd);
  if (dh.defined()) dx += wide(dh);
  return {dx.to(h.scalar_type()), dweight.to(accumulate_type(weight))};
}

}  // namespace sala
