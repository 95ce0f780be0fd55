// Per-head RMSNorm of q or k, then rotary position embedding (Su et al. 2021) in the rotate-half
// layout: with x = [a, b] halves of a head, y = [a cos - b sin, b cos + a sin]. The rotation's
// transpose carries the gradient: [da, db] = [dya cos + dyb sin, dyb cos - dya sin].
// Kernels on CUDA (qk_norm_rope.cu), a composition for the rest.

#include <ATen/Parallel.h>

#include "kernels/check.h"
#include "kernels/cuda_doors.h"
#include "kernels/ops.h"
#include "kernels/rows/qk_norm_rope_launch.h"

namespace sala {
namespace {

// `sign` is 1 forward and -1 for the transpose.
void rotate_loops(const float* x, const float* cos, const float* sin, float sign, int64_t T,
                  int64_t N, int64_t half, float* y) {
  at::parallel_for(0, T, 1 + 16384 / (N * half), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* ct = cos + t * half;
      const float* st = sin + t * half;
      for (int64_t n = 0; n < N; ++n) {
        const float* a = x + (t * N + n) * 2 * half;
        float* out = y + (t * N + n) * 2 * half;
        for (int64_t i = 0; i < half; ++i) {
          const float first = a[i], second = a[i + half], s = sign * st[i];
          out[i] = first * ct[i] - second * s;
          out[i + half] = second * ct[i] + first * s;
        }
      }
    }
  });
}

at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, int sign) {
  const int64_t T = x.size(0), N = x.size(1), half = x.size(2) / 2;
  at::Tensor y = at::empty_like(x);
  if (x.is_cpu() && x.scalar_type() == at::kFloat) {
    rotate_loops(x.const_data_ptr<float>(), cos.const_data_ptr<float>(),
                 sin.const_data_ptr<float>(), static_cast<float>(sign), T, N, half,
                 y.data_ptr<float>());
    return y;
  }
  const at::Tensor wide = x.to(cos.scalar_type());
  const at::Tensor a = wide.narrow(2, 0, half), b = wide.narrow(2, half, half);
  const at::Tensor c = cos.unsqueeze(1), s = sin.unsqueeze(1);
  y.narrow(2, 0, half).copy_(at::mul(a, c).addcmul_(b, s, -sign));
  y.narrow(2, half, half).copy_(at::mul(b, c).addcmul_(a, s, sign));
  return y;
}

void check_angles(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                  const char* op) {
  TORCH_CHECK(x.size(2) % 2 == 0, op, ": expected an even head size to rotate, got ", x.size(2));
  check_statistic(cos, {x.size(0), x.size(2) / 2}, x, op, "cos");
  check_statistic(sin, {x.size(0), x.size(2) / 2}, x, op, "sin");
}

#ifdef SALA_CUDA
bool head_kernels_take(const at::Tensor& x) {
  if (x.is_cuda() && x.size(2) % 2 != 0) {
    return kernels_run("qk_norm_rope", c10::str("an even head size, got ", x.size(2)));
  }
  return row_kernels_take("qk_norm_rope", x, x.size(2), kMaxHeadBytes);
}

const float* floats_or_null(const at::Tensor& x) {
  return x.defined() ? x.const_data_ptr<float>() : nullptr;
}

std::tuple<at::Tensor, at::Tensor> forward_cuda(const at::Tensor& x, const at::Tensor& weight,
                                                const at::Tensor& cos, const at::Tensor& sin,
                                                double eps) {
  const c10::cuda::CUDAGuard guard(x.device());
  at::Tensor y = at::empty(x.sizes(), x.options()), rstd;
  if (weight.defined()) rstd = at::empty({x.size(0), x.size(1)}, x.options().dtype(at::kFloat));
  RopeForward op{};
  op.type = element_type(x);
  op.T = x.size(0);
  op.N = static_cast<int>(x.size(1));
  op.HS = static_cast<int>(x.size(2));
  op.eps = static_cast<float>(eps);
  op.x = x.const_data_ptr();
  op.x_stride = x.stride(0);
  op.weight = data_or_null(weight);
  op.cos = floats_or_null(cos);
  op.sin = floats_or_null(sin);
  op.y = y.data_ptr();
  op.rstd = rstd.defined() ? rstd.data_ptr<float>() : nullptr;
  check_launch(qk_norm_rope_forward_cuda(op, c10::cuda::getCurrentCUDAStream()));
  return {y, rstd};
}

std::tuple<at::Tensor, at::Tensor> backward_cuda(const at::Tensor& dy, const at::Tensor& x,
                                                 const at::Tensor& weight, const at::Tensor& rstd,
                                                 const at::Tensor& cos, const at::Tensor& sin,
                                                 const at::Tensor& dx) {
  const c10::cuda::CUDAGuard guard(dy.device());
  at::Tensor dweight, partials;
  RopeBackward op{};
  op.type = element_type(dy);
  op.T = dy.size(0);
  op.N = static_cast<int>(dy.size(1));
  op.HS = static_cast<int>(dy.size(2));
  op.dy = dy.const_data_ptr();
  op.cos = floats_or_null(cos);
  op.sin = floats_or_null(sin);
  op.dx = dx.data_ptr();
  op.dx_stride = dx.stride(0);
  if (weight.defined()) {
    dweight = at::empty_like(weight, accumulate_type(weight));
    partials = empty_partials(dy, dy.size(2));
    op.x = x.const_data_ptr();
    op.weight = weight.const_data_ptr();
    op.rstd = rstd.const_data_ptr<float>();
    op.dweight = dweight.data_ptr<float>();
    op.partials = partials.data_ptr<float>();
  }
  check_launch(qk_norm_rope_backward_cuda(op, c10::cuda::getCurrentCUDAStream()));
  return {dx, dweight};
}
#endif

}  // namespace

std::tuple<at::Tensor, at::Tensor> qk_norm_rope_forward(const at::Tensor& x,
                                                        const at::Tensor& weight,
                                                        const at::Tensor& cos,
                                                        const at::Tensor& sin, double eps) {
  check_columns(x, 3, "qk_norm_rope", "x");
  if (cos.defined()) check_angles(x, cos, sin, "qk_norm_rope");
  if (weight.defined()) check_weight(weight, x, "qk_norm_rope");
#ifdef SALA_CUDA
  if (head_kernels_take(x)) return forward_cuda(x, weight, cos, sin, eps);
#endif
  if (!weight.defined()) {
    return {
        cos.defined() ? rotate(x.contiguous(), cos, sin, 1) : x.clone(at::MemoryFormat::Contiguous),
        at::Tensor()};
  }
  auto [n, rstd] = rmsnorm_forward(x.contiguous(), weight, eps);
  return {cos.defined() ? rotate(n, cos, sin, 1) : n, rstd};
}

std::tuple<at::Tensor, at::Tensor> qk_norm_rope_backward(
    const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& rstd,
    const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& dx_out) {
  check_input(dy, 3, "qk_norm_rope backward", "dy");
  if (cos.defined()) check_angles(dy, cos, sin, "qk_norm_rope backward");
  if (weight.defined()) {
    check_weight(weight, dy, "qk_norm_rope backward");
    check_same(x, dy, "qk_norm_rope backward", "x");
    check_statistic(rstd, {dy.size(0), dy.size(1)}, dy, "qk_norm_rope backward", "rstd");
  }
  if (dx_out.defined()) check_same_columns(dx_out, dy, "qk_norm_rope backward", "dx_out");
#ifdef SALA_CUDA
  if (head_kernels_take(dy)) {
    return backward_cuda(dy, x, weight, rstd, cos, sin,
                         dx_out.defined() ? dx_out : at::empty_like(dy));
  }
#endif
  at::Tensor dx = cos.defined() ? rotate(dy, cos, sin, -1) : dy, dweight;
  if (weight.defined()) {
    std::tie(dx, dweight) = rmsnorm_backward(dx, x, weight, rstd);
  } else if (!cos.defined()) {
    dx = dy.clone();
  }
  if (!dx_out.defined()) return {dx, dweight};
  dx_out.copy_(dx);
  return {dx_out, dweight};
}

}  // namespace sala
