// The kernel for whole chunks on CUDA (squared_error.cu), a composition for the rest.
#include "kernels/squared_error.h"

#include "kernels/check.h"
#include "kernels/cuda_doors.h"
#include "kernels/rows/squared_error_launch.h"

namespace sala {

std::pair<at::Tensor, at::Tensor> squared_error(const at::Tensor& y, const at::Tensor& target,
                                                double scale) {
  check_input(y, 2, "squared_error", "y");
  check_same(target, y, "squared_error", "target");
#ifdef SALA_CUDA
  if (y.numel() % 8 == 0 && kernels_take("squared_error", y)) {
    const c10::cuda::CUDAGuard guard(y.device());
    const at::Tensor a = aligned(y), b = aligned(target), dy = at::empty_like(y);
    const SquaredError op{element_type(y),    y.numel(),     a.const_data_ptr(),
                          b.const_data_ptr(), dy.data_ptr(), static_cast<float>(2 * scale)};
    const at::Tensor partials =
        at::empty({squared_error_partials(op)}, y.options().dtype(at::kDouble));
    check_launch(squared_error_cuda(op, partials.data_ptr<double>(), current_stream()));
    return {partials.sum() * scale, dy};
  }
#endif
  const at::ScalarType wide = accumulate_type(y);
  const at::Tensor difference = y.to(wide) - target.to(wide);
  return {difference.square().sum(at::kDouble) * scale,
          (difference * (2 * scale)).to(y.scalar_type())};
}

}  // namespace sala
