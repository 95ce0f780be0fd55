// Needle retrieval by greedy generation over prompt length and depth. A hit is the exact answer
// ids.
#pragma once

#include "trainer/evaluation/evaluate.h"

namespace sala {

// Adds "needles" and "needle_rate" to `result`. Prompts are shared out over the ranks.
void evaluate_needles(Run& run, const EvaluateOptions& options, const std::string& label,
                      Network& network, nlohmann::json& result);

}  // namespace sala
