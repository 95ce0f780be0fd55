// One optimizer step: the file to read first. No engine decides when things happen: the loop over
// units is written out, forward and backward; weights are leased where they are used, gradients go
// to their sums as soon as a unit is through, and nothing stays alive that this loop does not hold.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "model/saved.h"
#include "trainer/input_offload.h"
#include "trainer/losses.h"
#include "trainer/network.h"
#include "trainer/optimizer.h"
#include "trainer/step_clock.h"

namespace sala {

struct StepResult {
  std::vector<double> losses;  // global means, equal on all ranks
  double grad_norm = 0;        // of the whole gradient, before clipping
  std::vector<double> part_norms;
  bool finite = true;   // false: nothing was updated, on any rank
  bool updated = true;  // false: not finite, or not accepted
};

struct StepOptions {
  double lr = 0;
  double clip = 1.0;            // norm of the gradient above which it is scaled down; 0 = off
  bool clip_each_part = false;  // by each part's own norm, not by that of all (align)
  StepClock* clock = nullptr;
  // Asked before the update, on every rank with the same finite result; false: no update.
  std::function<bool(const StepResult&)> accepts = nullptr;
};

// Forward and backward of one micro-batch. Adds weight gradients to the trained parameters, tells
// them part by part when they are complete (Parameters::reduce), and returns this micro-batch's
// share of the global losses: fp64 on the device. `last`: of the step.
using Passes = std::function<at::Tensor(const Batch& batch, bool last)>;

// `micro_batches`: this rank's; every rank has as many (batches.h).
StepResult take_step(std::span<const Batch> micro_batches, const Passes& passes,
                     Parameters& trained, Optimizer& optimizer, Comm& comm,
                     const StepOptions& options);

struct PassOptions {
  Recompute recompute = Recompute::kNone;
  bool sparse = true;  // sparse layers select blocks in long documents
  StepClock* clock = nullptr;
  InputOffload* offload = nullptr;  // where units' inputs wait for the backward; null: they stay
  SelectionLossOptions selection = {};  // weight 0: the choice of blocks is not taught
  Matmul matmul = {};  // of the trained model's blocks; a teacher's are in its own type
};

// The passes of a whole model under a loss. Where selection is taught, its kNumSelectionSums sums
// over all sparse layers follow the losses.
at::Tensor model_passes(Network& network, Loss& loss, const Batch& batch, bool last,
                        const PassOptions& options);

}  // namespace sala
