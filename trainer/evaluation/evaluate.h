// Measuring a model: held-out loss by source and by position, KL to the teacher, needle retrieval
// and tasks by greedy generation, multiple choice by likelihood. The same numbers in evaluate
// stages, after a swap, and inside training loops.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "trainer/recipe/fields.h"
#include "trainer/run.h"

namespace sala {

// Thrown on all ranks together when a signal asks to stop in the middle of an evaluation:
// evaluations are repeated, not resumed. Or while data is read.
struct Stopped {};

// World::together for reading data: whoever waits for a disk gives up when a signal asks to stop,
// and then there is no data and no error.
void read_together(Run& run, const std::string& what, const std::function<void()>& work);

// Tokens in a forward pass on a GPU, where rows are shorter.
inline constexpr int64_t kEvaluationTokens = 16384;

struct EvaluateOptions {
  std::vector<std::string> sources;  // held-out sources; empty = no losses
  int64_t tokens = 64 * 1024;        // per source, at most
  int64_t row_length = 2048;
  int64_t context = 1;                  // ranks that share each held-out row
  bool kl = true;                       // also the student's KL to, and agreement with, the teacher
  bool sparse = true;                   // long documents go sparse in the hybrid
  std::vector<int64_t> needle_lengths;  // prompt lengths in tokens; empty = no needles
  std::vector<double> needle_depths{0.1, 0.3, 0.5, 0.7, 0.9};
  int64_t needles_per_cell = 4;       // for each (length, depth)
  std::string needle_source;          // haystacks are cut from it
  std::vector<std::string> choices;   // multiple-choice sets by name; empty = none
  int64_t choices_items = 1 << 20;    // questions per set and task, at most
  std::vector<std::string> tasks;     // tasks by name, or "all"; empty = none
  std::vector<int64_t> task_lengths;  // of those in data.tasks; empty = all
  int64_t task_items = 100;           // prompts per task and length, at most

  int64_t num_rows() const { return std::max<int64_t>(1, tokens / row_length); }  // per source
  void describe(Fields& fields);
  void check(const Recipe& recipe, const std::string& path, Problems& problems) const;

 private:
  void check_questions(const Recipe& recipe, const std::string& path, Problems& problems) const;
};

// {"label", "model": teacher | student, "sources": {name: {loss, loss_se, kl, kl_se, tokens,
// top1, top1_se, by_position: [{from, to, tokens, loss, kl, top1}]}}, "needles": [{length, depth,
// hits, count}], "needle_rate": {length: hits / count}, "choices": see choices.h, "tasks" and
// "task_mean": see tasks.h}. Rows, needles, questions and prompts are shared out over the ranks;
// all ranks get the result. Losses are means over tokens in nats; _se is the standard error over
// rows. kl and top1 (the share of tokens whose likeliest id is the teacher's) are the student's.
nlohmann::json evaluate_model(Run& run, const EvaluateOptions& options, const std::string& label,
                              Network& network, bool is_teacher);

// Of keys, values and states that a rank's prompts may take: half of what the stage has left on a
// GPU, at most kMostCacheBytes.
inline constexpr int64_t kMostCacheBytes = int64_t{16} << 30;
int64_t generation_cache_bytes(at::Device device);

// Tells people the losses and rates, and metrics.jsonl everything; `place`: "stage", and "step"
// where a stage is evaluated on its way.
void tell_evaluation(Run& run, nlohmann::json result, const nlohmann::json& place);

// The options of the recipe's first evaluate stage; nullptr without one.
const EvaluateOptions* evaluate_options(const Recipe& recipe);
// Evaluates the student with those options (nothing without any) under `label`, and before it the
// teacher if nobody has; adds to run.evaluations and writes metrics.
void evaluate_with_recipe(Run& run, const std::string& label);
void evaluate_and_record(Run& run, const EvaluateOptions& options, const std::string& label);

}  // namespace sala
