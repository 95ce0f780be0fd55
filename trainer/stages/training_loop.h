// What every looping stage does around its step: data in, learning rate, non-finite policy,
// metrics.
#pragma once

#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/loader.h"
#include "model/batch.h"
#include "trainer/recipe/stage_options.h"
#include "trainer/run.h"
#include "trainer/stages/loss_watch.h"

namespace sala {

// The loader specs of `data` ({source name: weight}) in name order, globs expanded.
std::vector<SourceSpec> source_specs(const Recipe& recipe,
                                     const std::map<std::string, double>& data);

class TrainingLoop {
 public:
  TrainingLoop(Run& run, const Stage& stage, const TokenBudget& budget,
               const OptimizerOptions& optimizer, const LoopOptions& options,
               double flops_per_token);

  bool done() const { return step_ >= num_steps_; }
  int64_t step() const { return step_; }
  int64_t num_steps() const { return num_steps_; }

  struct Input {
    std::vector<Batch> micro_batches;  // this rank's; may be empty
    double lr = 0;
    int64_t num_target_tokens = 0;  // of all ranks
  };
  Input next();

  // Ends the step: counts it, keeps the data cursor, writes metrics, and after the last one judges
  // the stage. `line` holds the stage's own numbers. A step that is not finite was skipped by the
  // caller on all ranks; too many in a row, on_nonfinite: stop, and a loss that left for good where
  // it began (LossWatch) throw.
  void finish(double loss, bool finite, nlohmann::json line);

  // Ends a step whose loss has no target token on any rank: there is nothing to learn from it and
  // nothing diverged. Its tokens count, no parameter changes, metrics say so.
  void pass_over(const Input& input);

  void save(StateWriter& out) const;
  void load(StateReader& in);

 private:
  void open_loader();
  void count_step();
  void check_finite(bool finite);
  void check_divergence(double loss, double lr);
  void judge();

  Run& run_;
  const Stage& stage_;
  TokenBudget budget_;
  OptimizerOptions optimizer_;
  LoopOptions options_;
  double flops_per_token_ = 0;
  int64_t step_ = 0, num_steps_ = 0, skips_in_a_row_ = 0;
  LossWatch watch_;
  std::unique_ptr<Loader> loader_;
  nlohmann::json state_after_;
  std::chrono::steady_clock::time_point started_;
  int64_t steps_here_ = 0;       // since this process began or resumed the stage
  double seconds_per_step_ = 0;  // running mean over them, for the time left
};

}  // namespace sala
