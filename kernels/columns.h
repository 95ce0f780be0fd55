// Copies between dense tensors and columns of a wider (T, ...) one: what one product gives is split
// by them, and gradients are laid side by side. LibTorch's copy of such rows moves an element a
// thread, at a fifth of the speed.
#pragma once

#include <ATen/ATen.h>

namespace sala {

// x (T, ...), which may be columns (kernels/ops.h); itself where it is dense already.
at::Tensor dense_columns(const at::Tensor& x);
// `from` into `to`: same sizes, dtype and device; either may be columns.
void copy_columns(const at::Tensor& to, const at::Tensor& from);

}  // namespace sala
