// RMSNorm (Zhang & Sennrich 2019): y = cast(x * rstd) * weight, rstd = 1 / sqrt(mean(x^2) + eps).
// With n = x * rstd and g = dy * weight: dx = rstd * (g - n * mean(g * n)), dweight = sum of dy *
// n. Kernels on CUDA (rmsnorm.cu); plain loops for fp32 on the CPU, where the many passes of the
// composition would show next to the matrix products of a small model; the composition for the
// rest.

#include <ATen/Parallel.h>

#include <cmath>

#include "kernels/check.h"
#include "kernels/cuda_doors.h"
#include "kernels/ops.h"
#include "kernels/rows/rmsnorm_launch.h"
#include "kernels/rows/row_sums.h"

namespace sala {
namespace {

void forward_loops(const float* x, const float* weight, double eps, int64_t rows, int64_t C,
                   float* y, float* rstd) {
  at::parallel_for(0, rows, 1 + 16384 / C, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* xt = x + t * C;
      const float r = static_cast<float>(1.0 / std::sqrt(dot(xt, xt, C) / C + eps));
      for (int64_t c = 0; c < C; ++c) y[t * C + c] = xt[c] * r * weight[c];
      rstd[t] = r;
    }
  });
}

void backward_loops(const float* dy, const float* x, const float* weight, const float* rstd,
                    int64_t rows, int64_t C, float* dx, float* dweight) {
  at::parallel_for(0, rows, 1 + 16384 / C, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* xt = x + t * C;
      const float* dyt = dy + t * C;
      const float r = rstd[t];
      const float shared = static_cast<float>(dot(dyt, weight, xt, C) / C) * r * r;
      for (int64_t c = 0; c < C; ++c) dx[t * C + c] = r * (dyt[c] * weight[c] - xt[c] * shared);
    }
  });
  // Split over columns, so that the order of the sum over rows does not depend on the threads.
  at::parallel_for(0, C, 64, [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t c = begin; c < end; ++c) dweight[c] += dy[t * C + c] * x[t * C + c] * rstd[t];
    }
  });
}

bool use_loops(const at::Tensor& x) { return x.is_cpu() && x.scalar_type() == at::kFloat; }

#ifdef SALA_CUDA
// `y` and `h` undefined: the norm alone, of x.
at::Tensor forward_cuda(const at::Tensor& x, const at::Tensor& y, double residual_scale,
                        const at::Tensor& weight, double eps, const at::Tensor& h,
                        const at::Tensor& u) {
  const c10::cuda::CUDAGuard guard(x.device());
  at::Tensor rstd =
      at::empty(x.sizes().slice(0, x.dim() - 1), x.options().dtype(accumulate_type(x)));
  NormForward op{};
  op.type = element_type(x);
  op.rows = rstd.numel();
  op.C = static_cast<int>(x.size(-1));
  op.eps = static_cast<float>(eps);
  op.residual_scale = static_cast<float>(residual_scale);
  op.x = x.const_data_ptr();
  op.y = data_or_null(y);
  op.weight = weight.const_data_ptr();
  op.h = h.defined() ? h.data_ptr() : nullptr;
  op.u = u.data_ptr();
  op.rstd = rstd.data_ptr<float>();
  check_launch(norm_forward_cuda(op, c10::cuda::getCurrentCUDAStream()));
  return rstd;
}

std::tuple<at::Tensor, at::Tensor> backward_cuda(const at::Tensor& dy, const at::Tensor& dh,
                                                 const at::Tensor& x, const at::Tensor& weight,
                                                 const at::Tensor& rstd) {
  const c10::cuda::CUDAGuard guard(x.device());
  at::Tensor dx = at::empty_like(x), dweight = at::empty_like(weight, accumulate_type(weight));
  const at::Tensor partials = empty_partials(x, x.size(-1));
  NormBackward op{};
  op.type = element_type(x);
  op.rows = rstd.numel();
  op.C = static_cast<int>(x.size(-1));
  op.dy = dy.const_data_ptr();
  op.dh = data_or_null(dh);
  op.x = x.const_data_ptr();
  op.weight = weight.const_data_ptr();
  op.rstd = rstd.const_data_ptr<float>();
  op.dx = dx.data_ptr();
  op.dweight = dweight.data_ptr<float>();
  op.partials = partials.data_ptr<float>();
  check_launch(norm_backward_cuda(op, c10::cuda::getCurrentCUDAStream()));
  return {dx, dweight};
}
#endif

}  // namespace

std::tuple<at::Tensor, at::Tensor> rmsnorm_forward(const at::Tensor& x, const at::Tensor& weight,
                                                   double eps) {
  check_input(x, -1, "rmsnorm", "x");
  TORCH_CHECK(x.dim() >= 1, "rmsnorm: expected x with at least one dimension, got a scalar");
  const int64_t C = x.size(-1);
  check_weight(weight, x, "rmsnorm");
  const auto stat_type = accumulate_type(x);
  at::Tensor y = at::empty_like(x);
#ifdef SALA_CUDA
  if (row_kernels_take("rmsnorm", x, C)) return {y, forward_cuda(x, {}, 1, weight, eps, {}, y)};
#endif
  if (use_loops(x)) {
    at::Tensor rstd = at::empty(x.sizes().slice(0, x.dim() - 1), x.options());
    forward_loops(x.const_data_ptr<float>(), weight.const_data_ptr<float>(), eps, rstd.numel(), C,
                  y.data_ptr<float>(), rstd.data_ptr<float>());
    return {y, rstd};
  }
  const int64_t last = -1;
  at::Tensor rstd = at::linalg_vector_norm(x, 2, last, /*keepdim=*/true, stat_type);
  rstd.square_().div_(static_cast<double>(C)).add_(eps).rsqrt_();
  at::mul_out(y, x, rstd);  // computed in the statistic's type, cast on the way out
  y.mul_(weight);
  return {y, rstd.squeeze(-1)};
}

std::tuple<at::Tensor, at::Tensor> rmsnorm_backward(const at::Tensor& dy, const at::Tensor& x,
                                                    const at::Tensor& weight,
                                                    const at::Tensor& rstd) {
  check_input(x, -1, "rmsnorm backward", "x");
  check_same(dy, x, "rmsnorm backward", "dy");
  const int64_t C = x.size(-1);
  check_weight(weight, x, "rmsnorm backward");
  check_statistic(rstd, x.sizes().slice(0, x.dim() - 1), x, "rmsnorm backward", "rstd");
#ifdef SALA_CUDA
  if (row_kernels_take("rmsnorm", x, C)) return backward_cuda(dy, {}, x, weight, rstd);
#endif
  if (use_loops(x)) {
    at::Tensor dx = at::empty_like(x);
    at::Tensor dweight = at::zeros_like(weight);
    backward_loops(dy.const_data_ptr<float>(), x.const_data_ptr<float>(),
                   weight.const_data_ptr<float>(), rstd.const_data_ptr<float>(), rstd.numel(), C,
                   dx.data_ptr<float>(), dweight.data_ptr<float>());
    return {dx, dweight};
  }
  const at::Tensor r = rstd.reshape({-1, 1});
  const at::Tensor dy_TC = dy.view({-1, C});
  const at::Tensor n_TC = at::mul(x.view({-1, C}), r);
  at::Tensor dweight = at::mul(n_TC, dy_TC).sum(0);
  at::Tensor g_TC = dy_TC.to(rstd.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
  g_TC.mul_(weight);
  const at::Tensor mean_T1 = at::mul(g_TC, n_TC).mean(1, /*keepdim=*/true);
  g_TC.addcmul_(n_TC, mean_T1, -1).mul_(r);
  return {g_TC.to(x.scalar_type()).view(x.sizes()), dweight};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> add_rmsnorm_forward(const at::Tensor& x,
                                                                   const at::Tensor& y,
                                                                   double residual_scale,
                                                                   const at::Tensor& weight,
                                                                   double eps) {
  check_input(x, -1, "add_rmsnorm", "x");
  TORCH_CHECK(x.dim() >= 1, "add_rmsnorm: expected x with at least one dimension, got a scalar");
  check_same(y, x, "add_rmsnorm", "y");
#ifdef SALA_CUDA
  if (row_kernels_take("add_rmsnorm", x, x.size(-1))) {
    check_weight(weight, x, "add_rmsnorm");
    at::Tensor sum = at::empty_like(x), norm = at::empty_like(x);
    at::Tensor statistic = forward_cuda(x, y, residual_scale, weight, eps, sum, norm);
    return {sum, norm, statistic};
  }
#endif
  at::Tensor h = at::add(x, y, residual_scale);
  auto [u, rstd] = rmsnorm_forward(h, weight, eps);
  return {h, u, rstd};
}

std::tuple<at::Tensor, at::Tensor> add_rmsnorm_backward(const at::Tensor& du, const at::Tensor& dh,
                                                        const at::Tensor& h,
                                                        const at::Tensor& weight,
                                                        const at::Tensor& rstd) {
  check_input(h, -1, "add_rmsnorm backward", "h");
  if (dh.defined()) check_same(dh, h, "add_rmsnorm backward", "dh");
#ifdef SALA_CUDA
  if (row_kernels_take("add_rmsnorm", h, h.size(-1))) {
    check_same(du, h, "add_rmsnorm backward", "du");
    check_weight(weight, h, "add_rmsnorm backward");
    check_statistic(rstd, h.sizes().slice(0, h.dim() - 1), h, "add_rmsnorm backward", "rstd");
    return backward_cuda(du, dh, h, weight, rstd);
  }
#endif
  auto [dx, dweight] = rmsnorm_backward(du, h, weight, rstd);
  if (dh.defined()) dx.add_(dh);
  return {dx, dweight};
}

}  // namespace sala
