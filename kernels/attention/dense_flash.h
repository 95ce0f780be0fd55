// Dense attention by the variable-length flash kernel of LibTorch (FlashAttention-2, Dao 2023), for
// bf16 on CUDA. Its offsets wrap on large tensors (LibTorch 2.11: illegal accesses seen with 2^32
// elements of q, none with 2^30), so those go in pieces: documents that fit together, or of one
// that does not, some heads.
#pragma once

#include <ATen/ATen.h>

#include <tuple>

#include "kernels/attention/dense_slabs.h"
#include "kernels/documents.h"

namespace sala {

// Elements of q or k in one call, as its offsets count them.
inline constexpr int64_t kFlashElements = int64_t{1} << 30;

// Shapes of dense_attention.
std::tuple<at::Tensor, at::Tensor> dense_flash_forward(const at::Tensor& q, const at::Tensor& k,
                                                       const at::Tensor& v, const Documents& q_docs,
                                                       const Documents& k_docs, double scale,
                                                       int64_t most_elements = kFlashElements);
// `deterministic`: parts of dq are added in a fixed order.
DenseGradients dense_flash_backward(const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k,
                                    const at::Tensor& v, const at::Tensor& o, const at::Tensor& lse,
                                    const Documents& q_docs, const Documents& k_docs, double scale,
                                    bool deterministic, int64_t most_elements = kFlashElements);

}  // namespace sala
