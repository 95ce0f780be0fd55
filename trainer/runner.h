// Runs a recipe from where it stands. The runner owns every loop: signals, checkpoints, evaluation;
// stages do one step or work item at a time.
#pragma once

#include <string>

#include "trainer/recipe/recipe.h"
#include "trainer/world.h"

namespace sala {

struct RunnerOptions {
  std::string from;  // a checkpoint folder: forks a new run from it; empty = continue or start
  int64_t profile_steps = 0;  // of each stage, by LibTorch's profiler; 0 = none
  bool verify_data = false;   // read all token stores again, also those known to be right
  std::string export_to;  // write the model of the newest checkpoint (or of `from`) there, and stop
  std::string command, program;  // as it was called and what it is, for the report
};

// Exit code: 0 = finished, kExitCheckpointed = stopped on a signal after a checkpoint. Errors that
// all ranks share are thrown on all of them.
int run_recipe(Recipe& recipe, World& world, const RunnerOptions& options);

}  // namespace sala
