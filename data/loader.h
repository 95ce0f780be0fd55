// The training data of a stage: a thread plans the rows of the next steps, reads those of this rank
// and puts them in a short queue. The stream of rows does not depend on the number of ranks, and
// the state that comes with step n resumes at step n + 1.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "data/mixture.h"
#include "data/packing.h"
#include "data/source.h"

namespace sala {

struct LoaderConfig {
  std::int64_t row_length = 0;     // T
  std::int64_t rows_per_step = 0;  // of all ranks together: the batch is global
  std::uint64_t seed = 0;
  std::int64_t lanes = 64;
  std::string stage;  // unique name; a state saved by another stage starts this one at step 0
  TokenizerIdentity tokenizer;
  std::shared_ptr<const StoreCatalog> catalog;  // null: every store is opened to look at it
  int rank = 0;
  int num_ranks = 1;
  std::int64_t queue_steps = 2;
};

struct StepRows {
  std::int64_t step = 0;                // from 0 in each stage
  std::int64_t num_target_tokens = 0;   // sum of loss weights over all rows of all ranks
  std::vector<RowPlan> plans;           // all rows of the step
  std::int64_t first_row_of_stage = 0;  // plans[i] is this row + i since the stage's beginning
  std::int64_t first_row = 0;           // rows[i] is plans[first_row + i]
  std::vector<Row> rows;                // this rank's; may be empty
  nlohmann::json state_after;           // resumes at step + 1, on any number of ranks
};

// Rows [first, second) of `rows_per_step` belong to `rank`: row i to rank floor(i * R / rows).
std::pair<std::int64_t, std::int64_t> rows_of_rank(std::int64_t rows_per_step, int rank,
                                                   int num_ranks);

class Loader {
 public:
  // `state`: null at the start of a run, else state() or StepRows::state_after of this stage
  // (resume) or of the stage before (its cursors and open documents are carried over).
  // Opens all files; errors are std::runtime_error with one line.
  Loader(const std::vector<SourceSpec>& sources, const LoaderConfig& config,
         const nlohmann::json& state = nullptr);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  // Waits for the next step. An error of the reading thread is thrown here, at the step it struck,
  // and again at each later call.
  StepRows next();

  // The state after the last step that next() gave; before the first, the one we start from.
  const nlohmann::json& state() const { return state_; }
  // For names and counts; their tokens are the reading thread's.
  const std::vector<Source>& sources() const { return sources_; }

 private:
  void read_ahead(const std::stop_token& stop);
  StepRows make_step();
  nlohmann::json mixture_state() const;

  LoaderConfig config_;
  std::vector<Source> sources_;
  Mixture mixture_;        // the reading thread's, as are the sources' files
  std::int64_t step_ = 0;  // the reading thread's
  nlohmann::json state_;

  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::deque<StepRows> queue_;
  std::exception_ptr error_;
  std::jthread thread_;  // last: joined before anything it uses goes away
};

}  // namespace sala
