// The tensor side of the CUDA kernels of block-sparse attention.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <tuple>

#include "kernels/documents.h"

namespace sala {

// bf16 on compute capability 8.0 and later, head sizes 64 and 128, groups up to 16, blocks of 64,
// scale > 0. On a GPU what is lacking is told (kernels/paths.h).
bool block_sparse_kernels_run(const at::Tensor& q, const at::Tensor& k, int64_t block_size,
                              double scale);

// Inputs as block_sparse_attention has checked them. The same bits at every call; the order within
// a list changes rounding only.
std::tuple<at::Tensor, at::Tensor> block_sparse_forward_cuda(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& blocks,
    const Documents& q_docs, const Documents& k_docs, double scale);
std::tuple<at::Tensor, at::Tensor, at::Tensor> block_sparse_backward_cuda(
    const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& o, const at::Tensor& lse, const at::Tensor& blocks, const Documents& q_docs,
    const Documents& k_docs, double scale);

}  // namespace sala
