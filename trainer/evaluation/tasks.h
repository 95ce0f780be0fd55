// Tasks answered by greedy generation (data/questions/task_set.h): the answer's text is searched
// for references.
#pragma once

#include "data/questions/task_set.h"
#include "trainer/evaluation/evaluate.h"

namespace sala {

// Adds "tasks": [{"task", "length", "score", "low", "high", "count"}] and "task_mean": {length:
// mean over its tasks} to `result`. score: mean of answer_score over prompts; low and high:
// Wilson's 95 % interval for a share of that size, which is wider than needed where answers score
// in between. Prompts are shared out over the ranks.
void evaluate_tasks(Run& run, const EvaluateOptions& options, const std::string& label,
                    Network& network, nlohmann::json& result);

// The tasks and lengths of a set that the options ask for; what the set lacks is left out.
std::vector<std::string> chosen_tasks(const EvaluateOptions& options, const TaskSet& set);
std::vector<int64_t> chosen_lengths(const EvaluateOptions& options,
                                    const std::map<int64_t, int64_t>& in_set);

// Prompts that a rank answers between two looks for a signal to stop, in tokens: several short
// ones, or one long one.
inline int64_t tokens_answered_at_once(bool on_gpu) { return int64_t{on_gpu ? 512 : 32} << 10; }

}  // namespace sala
