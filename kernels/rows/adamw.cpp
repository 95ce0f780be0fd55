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
  const auto f = [](double x) { return static_cast<float>(x); };
  return {f(o.grad_scale), f(o.beta1),
          f(1 - o.beta1),  f(o.beta2),
          f(1 - o.beta2),  f(1 / std::sqrt(1 - std::pow(o.beta2, static_cast<double>(o.step)))),
          f(o.eps)};
}

AdamWRange fold(const AdamW& o, const AdamWSegment& segment) {
  const double lr = o.lr * segment.lr_scale;
  const double step_size = lr / (1 - std::pow(o.beta1, static_cast<double>(o.step)));
  return {segment.begin, segment.count, static_cast<float>(step_size),
          static_cast<float>(lr * segment.weight_decay)};
}

// In tables of as many ranges as one launch takes.
template <class Launch>
void for_each_table(const AdamW& options, const std::vector<AdamWSegment>& segments,
                    const Launch& launch) {
  AdamWTable table{};
  table.factors = fold(options);
  for (size_t i = 0; i < segments.size(); ++i) {
    table.ranges[table.num_ranges++] = fold(options, segments[i]);
    if (table.num_ranges < AdamWTable::kMostRanges && i + 1 < segments.size()) continue;
    launch(table);
    table.num_ranges = 0;
  }
}

#ifdef SALA_CUDA
void update_cuda(const at::Tensor& master, const at::Tensor& m, const at::Tensor& v,
                 const at::Tensor& grad, const at::Tensor& copy, const AdamWTable& table) {
  const c10::cuda::CUDAGuard guard(master.device());
  auto type = CopyType::kNone;
  if (copy.defined()) {
    type = copy.scalar_type() == at::kFloat ? CopyType::kFloat : CopyType::kBFloat16;
  }
  check_launch(adamw_cuda(master.data_ptr<float>(), m.data_ptr<float>(), v.data_ptr<float>(),
                          copy.defined() ? copy.data_ptr() : nullptr, type,
                          grad.const_data_ptr<float>(), table, c10::cuda::getCurrentCUDAStream()));
}
#else
void update_cuda(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                 const at::Tensor&, const AdamWTable&) {
  TORCH_CHECK(false, "adamw_step: this build has no CUDA");
}
#endif

void update_cpu(float* master, float* m, float* v, const float* grad, const AdamWTable& table) {
  for (int r = 0; r < table.num_ranges; ++r) {
    const AdamWRange& range = table.ranges[r];
    at::parallel_for(
        range.begin, range.begin + range.count, 1 << 14, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            master[i] = adamw_element(master[i], m[i], v[i], grad[i], table.factors, range);
          }
        });
  }
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
  adamw_step(master, m, v, grad, std::move(copy), options,
             {{0, master.numel(), 1.0, options.weight_decay}});
}

void adamw_step(at::Tensor& master, at::Tensor& m, at::Tensor& v, const at::Tensor& grad,
                at::Tensor copy, const AdamW& options, const std::vector<AdamWSegment>& segments) {
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
  for (const AdamWSegment& s : segments) {
    TORCH_CHECK(s.begin >= 0 && s.count >= 0 && s.begin + s.count <= master.numel(),
                "adamw_step: expected segments within ", master.numel(), " elements, got ", s.count,
                " from ", s.begin);
  }
  for_each_table(options, segments, [&](const AdamWTable& table) {
    if (master.is_cuda()) return update_cuda(master, m, v, grad, copy, table);
    update_cpu(master.data_ptr<float>(), m.data_ptr<float>(), v.data_ptr<float>(),
               grad.const_data_ptr<float>(), table);
  });
  if (!copy.defined() || master.is_cuda()) return;
  const at::Tensor from = master.view(-1), to = copy.view(-1);
  for (const AdamWSegment& s : segments) {
    to.narrow(0, s.begin, s.count).copy_(from.narrow(0, s.begin, s.count));
  }
}

}  // namespace sala
