// The likeliest id of every token, without a (T, V) tensor.
#pragma once

#include <ATen/ATen.h>

namespace sala {

// argmax over the vocabulary of x w^T: x (T, C), w (V, C) of one dtype and device; (T) int64. The
// products accumulate as in the losses over the vocabulary (fp32, or fp64 for fp64), in the same
// chunks of tokens. Of equal ones the lowest id.
at::Tensor likeliest_ids(const at::Tensor& x, const at::Tensor& w);

}  // namespace sala
