// Products of FP8 operands: LibTorch's scaled product where the device has FP8 cores, in fp32 of
// widened operands elsewhere.

#include "kernels/check.h"
#include "kernels/cuda_doors.h"
#include "kernels/fp8.h"
#include "kernels/fp8/add_product.h"
#include "kernels/fp8/cublaslt.h"
#include "kernels/fp8/launch.h"

namespace sala {
namespace {

at::Tensor widened(const Fp8Rows& rows, at::ScalarType dtype) {
  return rows.values.to(dtype) * rows.scale.to(dtype).unsqueeze(1);
}

void check_rows(const Fp8Rows& rows, const char* name) {
  TORCH_CHECK(rows.values.defined() && rows.values.scalar_type() == at::kFloat8_e4m3fn &&
                  rows.values.dim() == 2 && rows.values.is_contiguous(),
              "FP8 product: expected a contiguous matrix ", name, " of Float8_e4m3fn");
  check_shape(rows.scale, {rows.values.size(0)}, "FP8 product", "scale");
}

void check_operands(const Fp8Rows& a, const Fp8Rows& b) {
  check_rows(a, "a");
  check_rows(b, "b");
  TORCH_CHECK(b.values.size(1) == a.values.size(1),
              "FP8 product: expected rows of equal length, got ", a.values.size(1), " and ",
              b.values.size(1));
}

// A product (·, N) over K, by FP8 cores.
bool cores_take(const Fp8Rows& a, const Fp8Rows& b) {
  return a.values.size(1) % kFp8Multiple == 0 && b.values.size(0) % kFp8Multiple == 0 &&
         has_fp8_cores(a.values.device());
}

// Rows of a larger tensor may start anywhere.
bool starts_aligned(const at::Tensor& x) {
  return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
}

// Exact sums: fast ones stay in accumulators of about 14 bits and cut off the rest, towards zero;
// on Hopper that is 9 to 15 % faster and loses 24 % of a sum of 16K values of one sign.
at::Tensor scaled_product(const Fp8Rows& a, const Fp8Rows& b) {
  return at::_scaled_mm(a.values, b.values.t(), a.scale.unsqueeze(1), b.scale.unsqueeze(0), {}, {},
                        at::kBFloat16, /*use_fast_accum=*/false);
}

}  // namespace

at::Tensor fp8_product(const Fp8Rows& a, const Fp8Rows& b, at::ScalarType dtype) {
  check_operands(a, b);
  if (dtype == at::kBFloat16 && cores_take(a, b)) return scaled_product(a, b);
  const at::ScalarType wide = dtype == at::kDouble ? at::kDouble : at::kFloat;
  return at::mm(widened(a, wide), widened(b, wide).t()).to(dtype);
}

void fp8_add_product(const at::Tensor& sum, const Fp8Rows& a, const Fp8Rows& b) {
  constexpr const char* kOp = "FP8 product added to a sum";
  check_operands(a, b);
  check_shape(sum, {a.values.size(0), b.values.size(0)}, kOp, "sum");
  const at::ScalarType wide = sum.scalar_type();
  TORCH_CHECK(wide == at::kFloat || wide == at::kDouble, kOp, ": expected a sum in fp32, got ",
              wide);
  if (wide == at::kFloat && a.values.size(0) % kFp8Multiple == 0 && cores_take(a, b) &&
      starts_aligned(a.values) && starts_aligned(a.scale) && starts_aligned(sum)) {
    if (fp8_add_in_product(sum, a, b)) return;
    tell_way(kOp,
             "rounded to bf16 on the way: cuBLASLt has no product of these sizes that adds to "
             "fp32 on this GPU");
    fp8_add_rounded(sum, a, b);
    return;
  }
  sum.addmm_(widened(a, wide), widened(b, wide).t());
}

bool fp8_add_in_product(const at::Tensor& sum, const Fp8Rows& a, const Fp8Rows& b) {
#ifdef SALA_CUDA
  const c10::cuda::CUDAGuard guard(sum.device());
  const at::Tensor workspace = at::empty({kFp8AddBytes}, sum.options().dtype(at::kByte));
  return add_fp8_product({.M = a.values.size(0),
                          .N = b.values.size(0),
                          .K = a.values.size(1),
                          .a = a.values.const_data_ptr(),
                          .b = b.values.const_data_ptr(),
                          .a_scale = a.scale.const_data_ptr<float>(),
                          .b_scale = b.scale.const_data_ptr<float>(),
                          .sum = sum.data_ptr<float>(),
                          .workspace = workspace.data_ptr(),
                          .workspace_bytes = size_t{kFp8AddBytes}},
                         current_stream());
#else
  static_cast<void>(sum), static_cast<void>(a), static_cast<void>(b);
  return false;
#endif
}

void fp8_add_rounded(const at::Tensor& sum, const Fp8Rows& a, const Fp8Rows& b) {
  sum.add_(fp8_product(a, b, at::kBFloat16));
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
