// AdamW over flat parts: fp32 masters, moments and gradients; learning rates and freezing by tensor
// name.
#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "model/layout.h"
#include "trainer/checkpoint/checkpoints.h"
#include "trainer/recipe/stage_options.h"

namespace sala {

// A part in training. `master` (num_elements) fp32 is the truth; weights->flat is its copy in the
// compute dtype, or the same storage where that is fp32.
struct TrainedPart {
  Weights* weights = nullptr;
  at::Tensor master;
};

// The master of a part: shares storage with fp32 weights, otherwise a new fp32 copy of them.
TrainedPart make_trained(Weights& weights);
// After writing `master` directly (loading): refreshes the compute copy.
void refresh(TrainedPart& part);

class Optimizer {
 public:
  // Marks the views that train as requiring gradient. Parts with nothing to train get no moments.
  Optimizer(std::vector<TrainedPart> parts, const OptimizerOptions& options);
  // The end of training: views stop requiring gradient, gradients are freed. Not the destructor's
  // work: a run that stops in a stage gives up the weights before the stage.
  void release();

  // Norm of each part's gradient (0 for frozen parts), as the flat fp32 gradients stand. One sync.
  std::vector<double> part_norms() const;
  // One update of every part at learning rate `lr` (before each tensor's own scale), gradients
  // times `grad_scale[part]`; then zeroes the gradients.
  void step(double lr, const std::vector<double>& grad_scale);
  void zero_grad();

  bool trains(size_t part) const { return parts_[part].m.defined(); }
  size_t num_parts() const { return parts_.size(); }
  int64_t num_trained_elements() const;

  // Moments and step count, under `prefix` and each part's name.
  void save(StateWriter& out, const std::string& prefix = "") const;
  void load(StateReader& in, const std::string& prefix = "");

 private:
  struct Segment {
    int64_t offset, count;
    double lr_scale, decay;
  };
  struct PartState {
    TrainedPart part;
    at::Tensor m, v;
    std::vector<Segment> segments;  // what trains, adjacent tensors with equal settings merged
  };
  std::vector<PartState> parts_;
  OptimizerOptions options_;
  int64_t num_updates_ = 0;
};

}  // namespace sala
