// Plain-loop twins of the ops of kernels/decode.h: CPU only, fp64 sums. Those of selection and of
// lightning attention are the twins of the whole ops (attention.h), a sequence at a time.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "kernels/ops.h"

namespace sala {

// q (S, NH, HS); k, v (S, capacity, NKV, HS); blocks (NKV, S, K) int32 or undefined.
at::Tensor decode_attention_twin(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const std::vector<int64_t>& lengths, const at::Tensor& blocks,
                                 const SparseConfig& config, double scale);

}  // namespace sala
