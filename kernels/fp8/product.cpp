// FP8 operands and their product: our kernels and LibTorch's scaled product where the device has
// both, compositions of LibTorch ops for the rest.

#include "kernels/check.h"
#include "kernels/cuda_doors.h"
#include "kernels/fp8.h"
#include "kernels/fp8/launch.h"

namespace sala {
namespace {

constexpr double kLargest = 448, kLeast = 1e-30;

Fp8Rows composed_rows(const at::Tensor& x) {
  const at::Tensor wide = x.to(at::kFloat);
  // Tensors divide tensors: with a number on one side LibTorch multiplies by its reciprocal.
  const at::Tensor limit = at::full({}, kLargest, wide.options());
  const at::Tensor largest = wide.abs().amax(1).clamp_min(kLeast);
  const at::Tensor inverse = at::div(limit, largest);
  return {(wide * inverse.unsqueeze(1)).to(at::kFloat8_e4m3fn), at::div(largest, limit)};
}

at::Tensor widened(const Fp8Rows& rows, at::ScalarType dtype) {
  return rows.values.to(dtype) * rows.scale.to(dtype).unsqueeze(1);
}

#ifdef SALA_CUDA
bool kernels_quantize(const at::Tensor& x) {
  return x.is_cuda() && x.scalar_type() == at::kBFloat16;
}

// `columns`: of the transpose.
Fp8Rows quantized(const at::Tensor& x, bool columns) {
  const c10::cuda::CUDAGuard guard(x.device());
  const int64_t R = columns ? x.size(1) : x.size(0), K = columns ? x.size(0) : x.size(1);
  Fp8Rows rows{at::empty({R, K}, x.options().dtype(at::kFloat8_e4m3fn)),
               at::empty({R}, x.options().dtype(at::kFloat))};
  Fp8Quantize op{x.size(0),
                 x.size(1),
                 x.const_data_ptr(),
                 rows.values.data_ptr(),
                 rows.scale.data_ptr<float>(),
                 nullptr};
  at::Tensor largest;
  if (columns) {
    largest = at::zeros({R}, x.options().dtype(at::kInt));
    op.largest = static_cast<uint32_t*>(largest.data_ptr());
  }
  check_launch(columns ? fp8_columns_cuda(op, current_stream())
                       : fp8_rows_cuda(op, current_stream()));
  return rows;
}
#endif

void check_operand(const at::Tensor& x, const char* op) {
  check_input(x, 2, op, "x");
  TORCH_CHECK(x.numel() > 0, op, ": expected at least one row and one column, got ", x.sizes());
}

void check_rows(const Fp8Rows& rows, const char* name) {
  TORCH_CHECK(rows.values.defined() && rows.values.scalar_type() == at::kFloat8_e4m3fn &&
                  rows.values.dim() == 2 && rows.values.is_contiguous(),
              "FP8 product: expected a contiguous matrix ", name, " of Float8_e4m3fn");
  check_shape(rows.scale, {rows.values.size(0)}, "FP8 product", "scale");
}

}  // namespace

Fp8Rows fp8_rows(const at::Tensor& x) {
  check_operand(x, "FP8 rows");
#ifdef SALA_CUDA
  if (kernels_quantize(x)) return quantized(x, false);
#endif
  return composed_rows(x);
}

Fp8Rows fp8_columns(const at::Tensor& x) {
  check_operand(x, "FP8 columns");
#ifdef SALA_CUDA
  if (kernels_quantize(x)) return quantized(x, true);
#endif
  return composed_rows(x.t().contiguous());
}

at::Tensor fp8_product(const Fp8Rows& a, const Fp8Rows& b, at::ScalarType dtype, Fp8Sum sum) {
  check_rows(a, "a");
  check_rows(b, "b");
  const int64_t K = a.values.size(1), N = b.values.size(0);
  TORCH_CHECK(b.values.size(1) == K, "FP8 product: expected rows of equal length, got ", K, " and ",
              b.values.size(1));
  if (dtype == at::kBFloat16 && K % kFp8Multiple == 0 && N % kFp8Multiple == 0 &&
      has_fp8_cores(a.values.device())) {
    return at::_scaled_mm(a.values, b.values.t(), a.scale.unsqueeze(1), b.scale.unsqueeze(0), {},
                          {}, dtype, /*use_fast_accum=*/sum == Fp8Sum::kFast);
  }
  const at::ScalarType wide = dtype == at::kDouble ? at::kDouble : at::kFloat;
  return at::mm(widened(a, wide), widened(b, wide).t()).to(dtype);
}

bool has_fp8_cores(at::Device device) {
#ifdef SALA_CUDA
  if (!device.is_cuda()) return false;
  const c10::cuda::OptionalCUDAGuard guard(device);
  return fp8_cores_cuda();
#else
  static_cast<void>(device);
  return false;
#endif
}

}  // namespace sala
