// Rows of logits to losses and to the gradient at the logits: the part of the losses over the
// vocabulary (linear_cross_entropy, linear_kl in kernels/ops.h) between the matrix products.
#pragma once

#include <ATen/ATen.h>

#include "kernels/ops.h"
#include "kernels/topk.h"

namespace sala {

// n tokens. What is defined among loss, kl and ce is filled.
struct VocabRows {
  at::Tensor logits;          // (n, V) fp32/fp64: x W^T, before any scale; may be overwritten
  at::Tensor teacher_logits;  // likewise; undefined: next-token loss alone
  at::Tensor targets;         // (n) int64, or undefined
  at::Tensor weight;          // (n)
  at::Tensor loss, kl, ce;    // (n) in the logits' dtype: outputs, before weights
  TopkTeacher top = {};       // of the n tokens: a cut teacher instead of teacher_logits
  at::Tensor ce_weight = {};  // (n): instead of the rule's
};

struct VocabRule {
  double logit_scale = 1, teacher_logit_scale = 1;
  DistillConfig config;  // without a teacher: temperature 1, ce_weight 1
};

// Fills the losses. Returns d(sum weight * loss)/d logits, (n, V) in `gradient_type` or the logits'
// dtype, or an undefined tensor where `want_gradient` is false. No host sync on CUDA (fp32 logits,
// bf16 or fp32 gradient).
at::Tensor vocab_rows(const VocabRows& rows, const VocabRule& rule, bool want_gradient,
                      at::ScalarType gradient_type);
// Shares of cross-entropy in the rows' losses, (n, 1) in the logits' dtype.
at::Tensor ce_shares(const VocabRows& rows, const VocabRule& rule);

// vocab_rows where the teacher is cut; the gradient has the logits' dtype.
at::Tensor topk_rows(const VocabRows& rows, const VocabRule& rule, bool want_gradient);

// softmax(z) of n rows, split at k ids of each.
struct CutRows {
  at::Tensor log_top;      // (n, k) at the ids
  at::Tensor log_tail;     // (n, 1) of all others together; -inf where k = V
  at::Tensor inside_tail;  // (n, V) softmax over the others alone, 0 at the ids
  at::Tensor log_sum;      // (n, 1) of exp(z)
};
CutRows cut_rows(at::Tensor z, const at::Tensor& ids);  // z (n, V) is overwritten

}  // namespace sala
