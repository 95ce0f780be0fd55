// The tensor side of the CUDA kernels of block selection.
#pragma once

#include <ATen/ATen.h>

#include "kernels/ops.h"

namespace sala {

// Scores in memory at once.
constexpr int64_t kSelectWorkspaceBytes = int64_t{448} << 20;

// bf16 on compute capability 9.0, head sizes 64 and 128, groups up to 16, documents up to 32K
// blocks, scale > 0. Says once, for a bf16 tensor on a GPU, what it lacks.
bool block_select_kernels_run(const at::Tensor& q, const at::Tensor& k, const Documents& k_docs,
                              const SparseConfig& config, double scale);

// Inputs as block_select has checked them. The lists do not depend on the size of the workspace.
at::Tensor block_select_cuda(const at::Tensor& q, const at::Tensor& k, const Documents& q_docs,
                             const Documents& k_docs, const SparseConfig& config, double scale,
                             int64_t workspace_bytes = kSelectWorkspaceBytes);

}  // namespace sala
