// One optimizer step: the file to read first. No engine decides when things happen; the loop over
// units is written out, forward and backward, and LibTorch's autograd works inside one unit at a
// time.
#pragma once

#include <span>
#include <vector>

#include "trainer/losses.h"
#include "trainer/optimizer.h"
#include "trainer/sharding.h"

namespace sala {

struct StepOptions {
  double lr = 0;
  double clip = 1.0;       // global gradient norm; 0 = off
  bool recompute = false;  // run each unit's forward again in backward instead of keeping its graph
  bool sparse = true;      // sparse layers select blocks in long documents
};

struct StepResult {
  LossValue loss;        // global means, equal on all ranks
  double grad_norm = 0;  // of the whole gradient, before clipping
  std::vector<double> part_norms;
  bool finite = true;  // false: nothing was updated, on any rank
};

// `micro_batches` are this rank's share of the step; it may be empty: every rank joins every
// collective.
StepResult train_step(Model& model, Loss& loss, std::span<const Batch> micro_batches,
                      Sharding& sharding, Optimizer& optimizer, Comm& comm,
                      const StepOptions& options);

}  // namespace sala
