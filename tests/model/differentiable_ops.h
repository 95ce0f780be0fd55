// The ops of kernels/ops.h as differentiable functions. Each saves what its written backward needs
// and nothing else; tensors that need no gradient get none. Optional tensors may be undefined.
// Inputs are made contiguous where they are not. Names, shapes and formulas are those of
// kernels/ops.h.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <tuple>

#include "kernels/documents.h"

namespace sala {

// x (..., C), weight (C).
at::Tensor rmsnorm(const at::Tensor& x, const at::Tensor& weight, double eps);

// x, y (..., C), weight (C). Returns h = x + residual_scale * y and rmsnorm(h).
std::tuple<at::Tensor, at::Tensor> add_rmsnorm(const at::Tensor& x, const at::Tensor& y,
                                               double residual_scale, const at::Tensor& weight,
                                               double eps);

// x (T, N, HS); weight (HS) or undefined: no norm; cos, sin (T, HS/2) or undefined: no rotation.
at::Tensor qk_norm_rope(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& cos,
                        const at::Tensor& sin, double eps);

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);

// o, z (T, C); weight (C) or undefined: no norm.
at::Tensor gated_norm(const at::Tensor& o, const at::Tensor& z, const at::Tensor& weight,
                      double eps);

// q (Tq, NH, HS), k and v (Tk, NKV, HS). Returns o (Tq, NH, HS).
at::Tensor dense_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const Documents& q_docs, const Documents& k_docs, double scale);
at::Tensor dense_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const Documents& docs, double scale);

// q, k, v (T, NH, HS); slopes (NH) fp64 on the CPU; initial_state (D, NH, HS, HS) or undefined.
// Returns o and the final state (D, NH, HS, HS), undefined where it is not wanted; gradients flow
// through both.
std::tuple<at::Tensor, at::Tensor> lightning_attention(const at::Tensor& q, const at::Tensor& k,
                                                       const at::Tensor& v,
                                                       const at::Tensor& slopes,
                                                       const Documents& docs, double scale,
                                                       const at::Tensor& initial_state = {},
                                                       bool want_final_state = true);

// blocks (NKV, Tq, K) as block_select gives them; no gradient flows to the choice. Returns o.
at::Tensor block_sparse_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  const at::Tensor& blocks, const Documents& q_docs,
                                  const Documents& k_docs, int64_t block_size, double scale);
at::Tensor block_sparse_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  const at::Tensor& blocks, const Documents& docs,
                                  int64_t block_size, double scale);

}  // namespace sala
