// A way to score layers. The score stage (trainer/stages/score.cpp) makes one by the recipe, runs
// it item by item and publishes what it finds.
//
// Whatever a method has finished lies in RUN/scores (item_log.h), so that a kill takes back one
// item at most, and its scores do not depend on how many ranks there are or were.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "trainer/run.h"
#include "trainer/scores/options.h"

namespace sala {

class ScoreMethod {
 public:
  virtual ~ScoreMethod() = default;
  // One item; false = nothing left. For all ranks together. The first call reads what there is.
  virtual bool advance(Run& run) = 0;
  virtual int64_t step() const = 0;  // items done
  virtual int64_t num_steps() const = 0;
  // When nothing is left; equal on all ranks. {"layers": [{"layer", "score", "se", …}]} with at
  // least these, "kept", "within_noise" and "note" (confidence.h), and what else the method found.
  virtual nlohmann::json scores(Run& run) = 0;
};

// `stage`: its name. What options.measures() needs the run's aligned mixers.
std::unique_ptr<ScoreMethod> make_score_method(Run& run, const ScoreOptions& options,
                                               const std::string& stage, int64_t steps_told);

// By method; see the files of these names.
std::unique_ptr<ScoreMethod> make_swap_scores(Run& run, const ScoreOptions& options,
                                              const std::string& stage);
// `steps_told`: of how many steps metrics.jsonl has the lines already.
std::unique_ptr<ScoreMethod> make_gate_scores(Run& run, const ScoreOptions& options,
                                              const std::string& stage, int64_t steps_told);
std::unique_ptr<ScoreMethod> make_given_scores(const ScoreOptions& options);

}  // namespace sala
