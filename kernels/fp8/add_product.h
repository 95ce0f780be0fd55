// Two ways to add a product of FP8 operands to fp32 sums. On a GPU with FP8 cores fp8_add_product
// (kernels/fp8.h) takes the first where there is one; they are apart for tests. Operands and sizes
// as checked there.
#pragma once

#include "kernels/fp8.h"

namespace sala {

// The product adds by itself: 8 bytes for an element of the sum. False: cuBLASLt has no kernel for
// these sizes on this device, and nothing was written.
bool fp8_add_in_product(const at::Tensor& sum, const Fp8Rows& a, const Fp8Rows& b);

// The product is rounded to bf16, then added: 12 bytes for an element. Rounding adds an error of
// 0.2 % where FP8 operands cost 4.
void fp8_add_rounded(const at::Tensor& sum, const Fp8Rows& a, const Fp8Rows& b);

}  // namespace sala
