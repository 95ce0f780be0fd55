// One micro-batch on the device: packed rows laid end to end, T tokens in all.
#pragma once

#include <ATen/ATen.h>

#include "kernels/documents.h"

namespace sala {

struct Batch {
  at::Tensor ids;          // (T) int64
  at::Tensor targets;      // (T) int64; what each position predicts. Nothing later shifts labels.
  at::Tensor loss_weight;  // (T) fp32; 0 = the target does not count
  at::Tensor position;     // (T) int64; restarts at 0 with every document
  Documents docs;
  double global_weight = 0;  // sum of loss_weight over the whole step: all micro-batches, all ranks

  int64_t num_tokens() const { return docs.num_tokens(); }
};

}  // namespace sala
