// What a run keeps and says of its layers' scores.
#pragma once

#include <nlohmann/json.hpp>

#include "trainer/run.h"

namespace sala {

// run.scores: an event in metrics.jsonl, and a line for each layer and for the choice.
void tell_scores(Run& run);
// RUN/scores.h5: the attribute `method`, and of every layer (L) fp64 `score`, `plain`, `recall`,
// `se`, `kept_share`, `gate`; 0 where the method has no such number. Rank 0.
void write_scores(const Run& run);

}  // namespace sala
