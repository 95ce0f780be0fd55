// What every looping stage does around its step: data in, learning rate, non-finite policy,
// metrics.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/loader.h"
#include "model/batch.h"
#include "trainer/recipe/stage_options.h"
#include "trainer/run.h"
#include "trainer/stages/loss_watch.h"
#include "trainer/stages/spike_watch.h"
#include "trainer/step_clock.h"

namespace sala {

// The loader specs of `data` ({source name: weight}) in name order, globs expanded.
std::vector<SourceSpec> source_specs(const Recipe& recipe,
                                     const std::map<std::string, double>& data);

// Of a document of `length` tokens, with what backward takes.
using FlopsPerToken = std::function<double(int64_t length)>;

class TrainingLoop {
 public:
  TrainingLoop(Run& run, const Stage& stage, const TokenBudget& budget,
               const OptimizerOptions& optimizer, const LoopOptions& options,
               FlopsPerToken flops_per_token, std::string on_spike = "warn");

  bool done() const { return step_ >= num_steps_; }
  int64_t step() const { return step_; }
  int64_t num_steps() const { return num_steps_; }

  struct Input {
    std::vector<Batch> micro_batches;  // this rank's, as many as every other's
    double lr = 0;
    int64_t num_target_tokens = 0;  // of all ranks
    StepRows rows;                  // what the micro-batches were made of
  };
  Input next();
  // What a step counts its time with, and the communicator for its sums.
  StepClock& clock() { return clock_; }
  Comm& comm() { return *comm_; }

  // A loss's sums by source (losses.h) under their names; empty with one source.
  nlohmann::json by_source(const std::vector<double>& losses) const;

  // Parameters that train and that rules freeze, for the line of a stage's first step.
  nlohmann::json parameter_counts(const Parameters& parameters) const;

  // Whether a step with this finite loss and gradient may change the model (on_spike). Before
  // finish(), which says what was wrong with it.
  bool accepts(double loss, double grad_norm);

  // Ends the step: counts it, keeps the data cursor, writes metrics, and after the last one judges
  // the stage. `line` holds the stage's own numbers. A step that is not finite was skipped by the
  // caller on all ranks; too many in a row, on_nonfinite: stop, on_spike: stop, and a loss that
  // left for good where it began (LossWatch) throw.
  void finish(double loss, bool finite, nlohmann::json line);

  // Ends a step whose loss has no target token on any rank: there is nothing to learn from it and
  // nothing diverged. Its tokens count, no parameter changes, metrics say so.
  void pass_over(const Input& input);

  void save(StateWriter& out) const;
  void load(StateReader& in);

 private:
  void open_loader();
  int num_data_ranks() const;  // the ranks of a split sequence count as one
  void count_step();
  void check_skips(bool finite);
  void tell_spike();
  void check_divergence(double loss, double lr);
  void judge();
  void tell_spent() const;
  double flops_of(const std::vector<RowPlan>& plans);

  Run& run_;
  const Stage& stage_;
  TokenBudget budget_;
  OptimizerOptions optimizer_;
  LoopOptions options_;
  std::string on_spike_;
  FlopsPerToken flops_per_token_;
  std::map<int64_t, double> known_flops_;  // by length
  double step_flops_ = 0;
  int64_t step_ = 0, num_steps_ = 0, skips_in_a_row_ = 0;
  StepClock clock_;
  std::unique_ptr<Comm> comm_, sequence_;  // the world's, counting what is waited for
  PhaseSeconds spent_{};                   // since this process began or resumed the stage
  LossWatch watch_;
  SpikeWatch spikes_;
  std::string spike_;  // of the step that goes on; empty: none
  std::unique_ptr<Loader> loader_;
  nlohmann::json state_after_;
  std::chrono::steady_clock::time_point started_;
  int64_t steps_here_ = 0;       // since this process began or resumed the stage
  double seconds_per_step_ = 0;  // running mean over them, for the time left
};

}  // namespace sala
