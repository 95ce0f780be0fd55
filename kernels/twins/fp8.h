// Plain-loop twins of the ops of kernels/fp8.h: CPU only, sums in fp64, rounding to e4m3 by its
// definition.
#pragma once

#include <ATen/ATen.h>

#include "kernels/fp8.h"

namespace sala {

// The nearest number that e4m3 has, the even one of two; NaN for NaN. |value| at most 464.
double round_to_e4m3(double value);

Fp8Rows fp8_rows_twin(const at::Tensor& x);
Fp8Rows fp8_columns_twin(const at::Tensor& x);
at::Tensor fp8_product_twin(const Fp8Rows& a, const Fp8Rows& b, at::ScalarType dtype);
// The new sum.
at::Tensor fp8_add_product_twin(const at::Tensor& sum, const Fp8Rows& a, const Fp8Rows& b);

}  // namespace sala
