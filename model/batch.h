// One micro-batch on the device: packed rows laid end to end, T tokens in all;
// or this rank's shard of such a line, with the pieces of documents that lie in it.
#pragma once

#include <ATen/ATen.h>

#include <memory>

#include "kernels/documents.h"
#include "model/sequence_shard.h"

namespace sala {

struct Batch {
  at::Tensor ids;          // (T) int64
  at::Tensor targets;      // (T) int64; what each position predicts. Nothing later shifts labels.
  at::Tensor loss_weight;  // (T) fp32; 0 = the target does not count
  at::Tensor position;     // (T) int64; restarts at 0 with every document
  at::Tensor source;       // (T) int64; the number of the source; undefined: nobody asks
  int64_t num_sources = 0;
  Documents docs;
  std::shared_ptr<const SequenceShard> shard;  // null: the line is whole on this rank
  bool idle =
      false;  // stands in for rows that this rank does not have: weight 0, joins collectives
  double global_weight = 0;  // sum of loss_weight over the whole step: all micro-batches, all ranks

  int64_t num_tokens() const { return docs.num_tokens(); }
  // Tokens in document d, of the longest document: with what lies on other ranks.
  int64_t document_length(int64_t d) const;
  int64_t longest_document() const;
};

// This rank's shard of a line that all ranks of `comm` hold whole: views of its tokens, the pieces
// of documents that lie in it. TORCH_CHECK fails where the line has fewer tokens than ranks.
Batch make_shard(const Batch& line, Comm& comm);

}  // namespace sala
