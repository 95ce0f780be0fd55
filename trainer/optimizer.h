// AdamW over this rank's shares: fp32 masters, moments and gradients; learning rates and freezing
// by tensor name.
#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "trainer/checkpoint/checkpoints.h"
#include "trainer/parameters.h"
#include "trainer/recipe/stage_options.h"

namespace sala {

class Optimizer {
 public:
  // Names to `parameters` what trains: what no rule freezes. Parts with nothing to train get no
  // moments. `parameters` outlives this.
  Optimizer(Parameters& parameters, const OptimizerOptions& options);
  // The end of training: the gradient buffers go. Not the destructor's work: a run that stops in a
  // stage gives up the weights before the stage.
  void release();

  // Squared norm of this rank's share of each part's gradient (num_parts) fp64 on the device, 0 for
  // frozen parts, as finish_reductions() left it. Under none it is the whole's, equal on all ranks;
  // else the whole's is the sum over ranks (Parameters::shares_are_partial), which the caller makes
  // together with what else it sums. The host does not wait.
  at::Tensor part_square_sums() const;

  // One update of every part at learning rate `lr` (before each tensor's own scale), gradients
  // times `grad_scale[part]`; publishes the parts, and the gradients count as zero again.
  void step(double lr, const std::vector<double>& grad_scale);

  bool trains(size_t part) const { return parts_[part].m.defined(); }
  size_t num_parts() const { return parts_.size(); }

  // Moments and step count, under `prefix` and each part's name. Collective.
  // The next step() waits until `out` has copied what it was given, the parameters' masters too.
  void save(StateWriter& out, const std::string& prefix = "");
  void load(StateReader& in, const std::string& prefix = "");

  // Bytes of both moments on this rank; and planned from layouts alone, for the rank with most.
  int64_t num_bytes() const;
  static int64_t planned_bytes(const std::vector<LayoutPtr>& layouts,
                               const Parameters::Options& options, int num_ranks,
                               const std::vector<bool>& trained);

 private:
  struct Part {
    at::Tensor m, v;                     // as the share; undefined where nothing trains
    std::vector<AdamWSegment> segments;  // of the share
  };
  Parameters& parameters_;
  std::vector<Part> parts_;
  OptimizerOptions options_;
  int64_t num_updates_ = 0;
  std::shared_ptr<const Mark> saved_;  // what the next update waits for
};

}  // namespace sala
