// Plain-loop twins of the attention ops that this project invented no kernels for but must get
// right: lightning attention, block selection, block-sparse attention. They define what the ops of
// ops.h compute: same arguments and results, CPU only, one head and one token at a time, fp64
// inside. Results come in the dtypes that the ops give.
#pragma once

#include <ATen/ATen.h>

#include <tuple>

#include "kernels/documents.h"
#include "kernels/ops.h"

namespace sala {

// The recurrence, token by token.
std::tuple<at::Tensor, at::Tensor> lightning_forward_twin(const at::Tensor& q, const at::Tensor& k,
                                                          const at::Tensor& v,
                                                          const at::Tensor& slopes,
                                                          const Documents& docs, double scale,
                                                          const at::Tensor& initial_state = {});
// Always returns d_initial_state.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> lightning_backward_twin(
    const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& slopes, const Documents& docs, double scale,
    const at::Tensor& initial_state = {}, const at::Tensor& d_final_state = {});

at::Tensor lightning_end_state_twin(const at::Tensor& k, const at::Tensor& v,
                                    const at::Tensor& slopes, int64_t first_token);
at::Tensor lightning_start_gradient_twin(const at::Tensor& q, const at::Tensor& d_o,
                                         const at::Tensor& slopes, int64_t end_token, double scale);

// Block scores (NKV, Tq, NB) fp64, NB the blocks of the longest document: +inf forced, -inf not
// visible. Exact ties are frequent: neighbouring blocks share a compressed window. Compressed keys
// are rounded to `kept`, the type of the op's keys.
at::Tensor block_scores_twin(const at::Tensor& q, const at::Tensor& k, const Documents& q_docs,
                             const Documents& k_docs, const SparseConfig& config, double scale,
                             at::ScalarType kept = at::kDouble);
at::Tensor block_select_twin(const at::Tensor& q, const at::Tensor& k, const Documents& q_docs,
                             const Documents& k_docs, const SparseConfig& config, double scale,
                             at::ScalarType kept = at::kDouble);

std::tuple<at::Tensor, at::Tensor> block_sparse_attention_forward_twin(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& blocks,
    const Documents& q_docs, const Documents& k_docs, int64_t block_size, double scale);
std::tuple<at::Tensor, at::Tensor, at::Tensor> block_sparse_attention_backward_twin(
    const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& o, const at::Tensor& lse, const at::Tensor& blocks, const Documents& q_docs,
    const Documents& k_docs, int64_t block_size, double scale);

}  // namespace sala
