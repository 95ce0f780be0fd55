// AdamW over a flat shard: checks, the constants of the step, and the CPU loop.

#include <ATen/Parallel.h>

#include <cmath>

#include "kernels/check.h"
#include "kernels/cuda_doors.h"
#include "kernels/ops.h"
#include "kernels/rows/adamw_launch.h"

namespace sala {
namespace {

AdamWFactors fold(const AdamW& o) {
  const double step = static_cast<double>(o.step);
  const auto f = [](double x) { return static_cast<float>(x); };
  return {f(o.grad_scale),
          f(o.beta1),
          f(1 - o.beta1),
          f(o.beta2),
          f(1 - o.beta2),
          f(o.lr / (1 - std::pow(o.beta1, step))),
          f(1 / std::sqrt(1 - std::pow(o.beta2, step))),
          f(o.eps),
          f(o.lr * o.weight_decay)};
}

#ifdef SALA_CUDA
void update_cuda(const at::Tensor& master, const at::Tensor& m, const at::Tensor& v,
                 const at::Tensor& grad, const at::Tensor& copy, const AdamWFactors& factors) {
  const c10::cuda::CUDAGuard guard(master.device());
  auto type = CopyType::kNone;
  if (copy.defined()) {
    type = copy.scalar_type() == at::kFloat ? CopyType::kFloat : CopyType::kBFloat16;
  }
  check_launch(adamw_cuda(master.data_ptr<float>(), m.data_ptr<float>(), v.data_ptr<float>(),
                          copy.defined() ? copy.data_ptr() : nullptr, type,
                          grad.const_data_ptr<float>(), factors, master.numel(),
                          c10::cuda::getCurrentCUDAStream()));
}
#else
void update_cuda(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                 const at::Tensor&, const AdamWFactors&) {
  TORCH_CHECK(false, "adamw_step: this build has no CUDA");
}
#endif

void update_cpu(float* master, float* m, float* v, const float* grad, int64_t num_elements,
                const AdamWFactors& factors) {
  at::parallel_for(0, num_elements, 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      master[i] = adamw_element(master[i], m[i], v[i], grad[i], factors);
    }
  });
}

void check_flat(const at::Tensor& x, const at::Tensor& master, const char* name) {
  TORCH_CHECK(x.defined() && x.numel() == master.numel() && x.is_contiguous() &&
                  x.device() == master.device() && x.scalar_type() == at::kFloat,
              "adamw_step: expected contiguous fp32 ", name, " of ", master.numel(),
              " elements on ", master.device());
}

}  // namespace

void adamw_step(at::Tensor& master, at::Tensor& m, at::Tensor& v, const at::Tensor& grad,
                at::Tensor copy, const AdamW& options) {
  check_flat(master, master, "master");
  check_flat(m, master, "m");
  check_flat(v, master, "v");
  check_flat(grad, master, "grad");
  TORCH_CHECK(options.step >= 1, "adamw_step: expected step >= 1, got ", options.step);
  TORCH_CHECK(!copy.defined() ||
                  (copy.numel() == master.numel() && copy.is_contiguous() &&
                   copy.device() == master.device() &&
                   (copy.scalar_type() == at::kFloat || copy.scalar_type() == at::kBFloat16)),
              "adamw_step: expected a contiguous fp32 or bf16 copy of ", master.numel(),
              " elements on ", master.device());
  const AdamWFactors factors = fold(options);
  if (master.is_cuda()) return update_cuda(master, m, v, grad, copy, factors);
  update_cpu(master.data_ptr<float>(), m.data_ptr<float>(), v.data_ptr<float>(),
             grad.const_data_ptr<float>(), master.numel(), factors);
  if (copy.defined()) copy.view(-1).copy_(master.view(-1));
}

}  // namespace sala
