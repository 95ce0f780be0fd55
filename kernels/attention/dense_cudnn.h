// Dense attention by cuDNN, through LibTorch, for documents of one length: as a rule a
// micro-batch's rows, each of them inside a long document.
//
// cuDNN makes a plan of 60 to 100 ms for every new shape, which LibTorch keeps; so lengths are
// round ones, of which a run has few. LibTorch 2.11 also reaches cuDNN's kernels for packed
// documents of any lengths (_cudnn_attention_forward with cum_seq_q), but keeps none of their plans
// and makes one at every call: not worth it for any row.
#pragma once

#include <ATen/ATen.h>

#include <tuple>

#include "kernels/documents.h"

namespace sala {

// Whether cuDNN takes a bf16 call on CUDA and is faster than the variable-length flash kernel: as
// many keys as queries, and all documents of one length of 2K tokens or more, a multiple of 1K.
// What LibTorch lacks where it would be is told (kernels/paths.h).
bool dense_cudnn_gains(const at::Tensor& q, const Documents& q_docs, const Documents& k_docs);

// Shapes of dense_attention; n tokens in every document. lse is undefined where it is not wanted.
std::tuple<at::Tensor, at::Tensor> dense_cudnn_forward(const at::Tensor& q, const at::Tensor& k,
                                                       const at::Tensor& v, int64_t n, double scale,
                                                       bool want_lse);
// dq, dk, dv. cuDNN adds parts of dq in any order: the bits may differ from call to call.
std::tuple<at::Tensor, at::Tensor, at::Tensor> dense_cudnn_backward(
    const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& o, const at::Tensor& lse, int64_t n, double scale);

}  // namespace sala
