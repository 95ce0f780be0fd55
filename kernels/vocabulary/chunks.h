// What the losses over the vocabulary share: their inputs' checks, and the loop over chunks of
// tokens: logits by a matrix product, the rows' losses and gradients (kernels/vocabulary/rows.h),
// and the two products that carry the gradient back to x and w.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "kernels/vocabulary/rows.h"

namespace sala {

// Features and vocabulary projection of one model.
struct VocabHead {
  at::Tensor x;  // (T, C)
  at::Tensor w;  // (V, C)
};

// Tokens per chunk for T tokens: equal chunks (but the last) of at most 64 MB of fp32 logits on the
// CPU and 512 MB on a GPU, where the products need more than a thousand rows to run at full speed.
// Depends on shapes and the kind of device alone: sums over tokens fall into chunks alike in every
// run.
int64_t vocab_chunk_tokens(const at::Tensor& w, int64_t T);

// x (n, C) times w (V, C) transposed, in fp32 or fp64. (n, V)
at::Tensor chunk_logits(const at::Tensor& x, const at::Tensor& w);

void check_vocab_inputs(const char* op, const VocabHead& head, const at::Tensor& targets,
                        const at::Tensor& weight, const at::Tensor& d_w);
// Those of a distillation: in [0, 1], of each token of x where they go by token, and with targets.
void check_ce_shares(const DistillConfig& config, const at::Tensor& targets, const at::Tensor& x,
                     const char* op);

// One of both, or none: targets alone.
struct VocabTeacher {
  const VocabHead* whole = nullptr;
  const TopkTeacher* topk = nullptr;
};

// Loss of `student` against `teacher` and its gradients, as the ops promise. Inputs have been
// checked.
VocabLoss vocab_loss(const VocabHead& student, const VocabTeacher& teacher,
                     const at::Tensor& targets, const at::Tensor& weight, const VocabRule& rule,
                     at::Tensor* dx, const at::Tensor& d_w);

}  // namespace sala
