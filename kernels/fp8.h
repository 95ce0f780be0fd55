// Matrix products in FP8: operands in e4m3 (1 sign, 4 exponent and 3 fraction bits, largest 448, no
// infinity; Micikevicius et al., arXiv:2209.05433), each row of an operand with a scale of its own,
// sums in fp32. Shapes, dtypes and devices are checked here once. Twins: kernels/twins/fp8.h.
//
// What rounding costs: a value is within 1/16 of itself, or within 2^-10 / 448 of the largest of
// its row where that is more. A product of normal values is off by 3.7 % (root mean square).
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace sala {

// Row r of a matrix (R, K) is scale[r] * values[r].
struct Fp8Rows {
  at::Tensor values;  // (R, K) Float8_e4m3fn
  at::Tensor scale;   // (R) fp32: the largest |value| of the row over 448
};

// Every operand of a product is a multiple of this on each side: what the tensor cores take.
inline constexpr int64_t kFp8Multiple = 16;

// Of x (R, K), R and K at least 1; fp32, bf16, or fp64, which is rounded to fp32 first. A row of
// zeros, or of values below 1e-30, gets the scale of 1e-30. A value that is not finite stays
// visible: it, and what is multiplied by its row's scale, becomes NaN; other rows do not change.
// bf16 on CUDA: one kernel that reads x once; elsewhere a composition of LibTorch ops.
Fp8Rows fp8_rows(const at::Tensor& x);
// Of the transpose of x (R, K): values (K, R), scale (K). Equal to fp8_rows(x^T) in every bit. bf16
// on CUDA: two kernels, each of which reads x once.
Fp8Rows fp8_columns(const at::Tensor& x);
// Both, equal in every bit; bf16 on CUDA: two kernels that read x twice in all.
struct Fp8Both {
  Fp8Rows rows, columns;
};
Fp8Both fp8_rows_and_columns(const at::Tensor& x);

// a b^T: a (M, K), b (N, K) -> (M, N) in `dtype`. bf16 on a CUDA device with FP8 cores, K and N
// multiples of kFp8Multiple: LibTorch's scaled product (cuBLASLt on Hopper), the same bits at every
// call; elsewhere both operands are widened and multiplied in fp32 (fp64 for fp64), which is slow.
at::Tensor fp8_product(const Fp8Rows& a, const Fp8Rows& b, at::ScalarType dtype);

// sum (M, N) += a b^T; sum fp32 (fp64), contiguous. fp32 on a CUDA device with FP8 cores, M, N and
// K multiples of kFp8Multiple: the product adds by itself where cuBLASLt can (Hopper), which takes
// kFp8AddBytes of memory; else it is rounded to bf16 and added, which is told once. Elsewhere both
// operands are widened.
inline constexpr int64_t kFp8AddBytes = int64_t{32} << 20;
void fp8_add_product(const at::Tensor& sum, const Fp8Rows& a, const Fp8Rows& b);

// Whether the device multiplies FP8 by itself: CUDA, compute capability 8.9 and higher.
bool has_fp8_cores(at::Device device);

}  // namespace sala
