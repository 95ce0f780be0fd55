// What mixers exchange when a line of tokens is split over ranks: states and their gradients for
// lightning attention, keys and values for softmax attention. Every function that moves data is a
// collective of all ranks of shard.comm, called in the same order; where no document crosses any
// border none of them communicates, and over a border that is a document's start nothing flows at
// all: no decayed rest, no zero times something.
#pragma once

#include <ATen/ATen.h>

#include "model/sequence_shard.h"

namespace sala {

// ---------------------------------------------------------------- lightning attention
// With E_r the state that the tokens of shard r leave behind for the document at its end, and n_r
// its tokens, the state that enters shard r is
//   S_r = E_{r-1} + exp(-s n_{r-1}) S_{r-1},
// the second term only where shard r-1 lies inside one document that began earlier. Sums go from
// the lowest rank up. The gradient flows likewise from the right.

// The state before this rank's first token, (NH, HS, HS) fp32/fp64; undefined where the first
// document begins here. k, v (T, NH, HS) of this rank; slopes (NH) fp64 on the CPU.
at::Tensor entering_state(const SequenceShard& shard, const at::Tensor& k, const at::Tensor& v,
                          const at::Tensor& slopes);

// The gradient of the state after this rank's last token, (NH, HS, HS) fp32/fp64; undefined where
// the last document ends here. q, d_o (T, NH, HS) of this rank.
at::Tensor leaving_gradient(const SequenceShard& shard, const at::Tensor& q, const at::Tensor& d_o,
                            const at::Tensor& slopes, double scale);

// ---------------------------------------------------------------- softmax attention

// Rows of x (T, N, HS) of this rank and of the earlier ones, those of key_documents(): (Tk, N, HS).
// A view of what was gathered where all shards are equally long. Takes (T_longest R) rows of
// memory.
at::Tensor gather_keys(const SequenceShard& shard, const at::Tensor& x);

// The inverse for gradients: d_keys (Tk, N, HS), what this rank's queries send to the keys that
// they saw -> (T, N, HS) of this rank's own keys, summed over ranks in fp32 (fp64 for fp64).
at::Tensor scatter_key_gradient(const SequenceShard& shard, const at::Tensor& d_keys);

}  // namespace sala
