// What a start of a run says of itself before its first step.
#pragma once

#include "trainer/run.h"
#include "trainer/runner.h"
#include "trainer/stage.h"
#include "trainer/start/start.h"

namespace sala {

// RUN/recipe.yaml; in metrics.jsonl `start`, with the plan, and `checkpoint` or `fork` where there
// is one to go on from; the machine in the log. All ranks together.
void record_start(Run& run, const Start& start, const RunnerOptions& options,
                  const PlanContext& context);

}  // namespace sala
