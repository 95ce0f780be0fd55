// Per-head norm and rotation in plain loops.

#include "kernels/twins/twins.h"
#include "kernels/twins/values.h"

namespace sala {
namespace {

at::Tensor rotate_twin(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                       double sign) {
  const int64_t T = x.size(0), N = x.size(1), HS = x.size(2), half = HS / 2;
  const auto in = values_of(x), c = values_of(cos), s = values_of(sin);
  std::vector<double> y(in.size());
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t i = 0; i < half; ++i) {
        const int64_t a = (t * N + n) * HS + i, b = a + half, angle = t * half + i;
        y[a] = in[a] * c[angle] - sign * in[b] * s[angle];
        y[b] = in[b] * c[angle] + sign * in[a] * s[angle];
      }
    }
  }
  return tensor_of(y, x.sizes(), x.scalar_type());
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> qk_norm_rope_forward_twin(const at::Tensor& x,
                                                             const at::Tensor& weight,
                                                             const at::Tensor& cos,
                                                             const at::Tensor& sin, double eps) {
  at::Tensor y = x.cpu(), rstd;
  if (weight.defined()) std::tie(y, rstd) = rmsnorm_forward_twin(x, weight, eps);
  if (cos.defined()) y = rotate_twin(y, cos, sin, 1);
  return {y, rstd};
}

std::tuple<at::Tensor, at::Tensor> qk_norm_rope_backward_twin(
    const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& rstd,
    const at::Tensor& cos, const at::Tensor& sin) {
  at::Tensor dn = dy.cpu();
  if (cos.defined()) dn = rotate_twin(dn, cos, sin, -1);
  if (!weight.defined()) return {dn, at::Tensor()};
  return rmsnorm_backward_twin(dn, x, weight, rstd);
}

}  // namespace sala
