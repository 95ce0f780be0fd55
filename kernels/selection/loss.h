// A loss that teaches block selection to choose what full attention would look at. Selection itself
// has no gradient: means of 32 keys hide a token that stands out, and where a model was never
// taught to make them speak for their blocks, lists of long documents are little better than
// chance. As in SeerAttention (arXiv:2410.13276) and the indexer of DeepSeek-V3.2, the target is
// attention itself, without gradient; here it trains the queries and keys that there are, and no
// weights are added. What matters is the order of the scores alone, so this is no KL: a block that
// stands high enough is left in peace.
//
// For a query and a KV head, over the n blocks b from init_blocks on, but for its own and the
// kNearBlocks before it. Most of them are in the window, where nothing is to be chosen; their order
// teaches the same scores, and rows of 2K tokens have it already.
//
//   t_b  = sum over the block's keys of softmax(q k), mean over the G query heads
//   p_b  = t_b^2 / sum of all t
//   w    = sum over the G heads of softmax(q c) over the seen windows, compressed keys c
//   M_b  = max of w over the windows that touch block b (as ops.h, with the exact normaliser)
//   bar  = the k-th largest M, k = max(1, n / kTaughtShare)
//   loss = sum over b of p_b max(0, log bar + log kTaughtMargin - log M_b)
//
// with gradients to M_b and to the bar's own block. The square tells what stands out: attention
// spread over n blocks weighs 1 / n of what a single one holds. Without it most of the gradient
// is about which of many equal blocks comes first.
#pragma once

#include <ATen/ATen.h>

#include "kernels/ops.h"

namespace sala {

struct SelectionLossOptions {
  double weight = 0;  // of one query's loss, mean over the KV heads, in the gradients
  // Queries at positions stride - 1, 2 stride - 1, ... of each document. A prime visits all places
  // within a block alike.
  int64_t query_stride = 31;
};

inline constexpr int64_t kNearBlocks = 2;
inline constexpr int64_t kTaughtShare = 8;
inline constexpr double kTaughtMargin = 2;

// The first position in a document whose query is taught: it has two blocks to put in order.
int64_t first_taught_position(const SparseConfig& config, int64_t query_stride);

// What block_select_loss returns (4) fp64 on the device: sums over queries and means over KV heads.
enum SelectionSum {
  kSelectionLoss,     // the loss, without `weight`
  kSelectionMissed,   // attention's mass on blocks that block_select would leave out
  kSelectionCount,    // queries
  kSelectionChoices,  // those of them that have blocks to choose from, which kSelectionMissed is of
  kNumSelectionSums
};

// q (Tq, NH, HS), k (Tk, NKV, HS); adds the gradients to dq and dk, of their shapes and types. The
// queries are the last ones of each document, whose keys are all there (ops.h): the sums and
// gradients of the parts of a split sequence add up to those of the whole. A composition of
// LibTorch ops, documents of about one length side by side, in slabs of queries; the same bits at
// every call.
at::Tensor block_select_loss(const at::Tensor& q, const at::Tensor& k, const Documents& q_docs,
                             const Documents& k_docs, const SparseConfig& config, double scale,
                             const SelectionLossOptions& options, at::Tensor& dq, at::Tensor& dk);

}  // namespace sala
