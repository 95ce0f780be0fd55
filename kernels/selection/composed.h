// The pieces of block selection as compositions of LibTorch ops: what block_select and the decode
// step share.
#pragma once

#include <ATen/ATen.h>

#include "kernels/ops.h"

namespace sala {

// Scores that block_select_loss has in memory at once, in each of a few tensors.
constexpr int64_t kSelectionLossBytesCpu = int64_t{8} << 20;
constexpr int64_t kSelectionLossBytesCuda = int64_t{256} << 20;

// Compressed keys (NKV, windows, HS) in fp32/fp64, rounded to the type of the keys.
struct WindowMeans {
  at::Tensor fine;    // of kernel_size tokens, one every kernel_stride
  at::Tensor coarse;  // four times both
};
// Of keys (NKV, n, HS): the windows that lie in them as a whole.
WindowMeans window_means(const at::Tensor& keys, const SparseConfig& config);

// Lists (NKV, n, K) int32 of n queries that see more than K blocks. q_rows (NKV, G n, HS) in the
// type of the means, times the scale already; position (n) int64; `means` at least as long as the
// last query sees.
at::Tensor best_of_windows(const at::Tensor& q_rows, const WindowMeans& means,
                           const at::Tensor& position, int64_t last_position,
                           const SparseConfig& config);

}  // namespace sala
