// FP8 operands: our kernels for bf16 on CUDA, compositions of LibTorch ops for the rest.

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

#ifdef SALA_CUDA
bool kernels_quantize(const at::Tensor& x) {
  return x.is_cuda() && x.scalar_type() == at::kBFloat16;
}

Fp8Rows empty_rows(const at::Tensor& like, int64_t R, int64_t K) {
  return {at::empty({R, K}, like.options().dtype(at::kFloat8_e4m3fn)),
          at::empty({R}, like.options().dtype(at::kFloat))};
}

Fp8Output output(const Fp8Rows& rows) {
  return {rows.values.data_ptr(), rows.scale.data_ptr<float>()};
}

// What is wanted is written; `rows` alone has a kernel of its own.
Fp8Both quantized(const at::Tensor& x, bool rows, bool columns) {
  const c10::cuda::CUDAGuard guard(x.device());
  const int64_t R = x.size(0), K = x.size(1);
  Fp8Both made;
  Fp8Quantize op{.rows = R, .columns = K, .x = x.const_data_ptr(), .by_rows = {}, .by_columns = {}};
  if (rows) op.by_rows = output(made.rows = empty_rows(x, R, K));
  if (columns) op.by_columns = output(made.columns = empty_rows(x, K, R));
  if (!columns) {
    check_launch(fp8_rows_cuda(op, current_stream()));
    return made;
  }
  const at::Tensor largest = at::zeros({K + (rows ? R : 0)}, x.options().dtype(at::kInt));
  op.column_largest = static_cast<uint32_t*>(largest.data_ptr());
  if (rows) op.row_largest = op.column_largest + K;
  check_launch(rows ? fp8_both_cuda(op, current_stream()) : fp8_columns_cuda(op, current_stream()));
  return made;
}
#endif

void check_operand(const at::Tensor& x, const char* op) {
  check_input(x, 2, op, "x");
  TORCH_CHECK(x.numel() > 0, op, ": expected at least one row and one column, got ", x.sizes());
}

}  // namespace

Fp8Rows fp8_rows(const at::Tensor& x) {
  check_operand(x, "FP8 rows");
#ifdef SALA_CUDA
  if (kernels_quantize(x)) return quantized(x, true, false).rows;
#endif
  return composed_rows(x);
}

Fp8Rows fp8_columns(const at::Tensor& x) {
  check_operand(x, "FP8 columns");
#ifdef SALA_CUDA
  if (kernels_quantize(x)) return quantized(x, false, true).columns;
#endif
  return composed_rows(x.t().contiguous());
}

Fp8Both fp8_rows_and_columns(const at::Tensor& x) {
  check_operand(x, "FP8 rows and columns");
#ifdef SALA_CUDA
  if (kernels_quantize(x)) return quantized(x, true, true);
#endif
  return {composed_rows(x), composed_rows(x.t().contiguous())};
}

}  // namespace sala
