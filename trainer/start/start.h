// Where a start of a run begins: at its newest valid checkpoint, at one of another run
// (trainer/start/fork.h), or at its first stage; and what is checked before the first step.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "trainer/checkpoint/checkpoints.h"
#include "trainer/recipe/recipe.h"
#include "trainer/run.h"
#include "trainer/runner.h"
#include "trainer/world.h"

namespace sala {

struct Start {
  CheckpointId id;                      // stage and step to begin at
  std::string folder;                   // the checkpoint; empty: none
  std::unique_ptr<StateReader> reader;  // of it, until its stage has begun
  bool continues = false;               // a checkpoint of this run folder, not of --from
  int64_t metrics_bytes = 0;            // of metrics.jsonl when it was saved
  std::vector<std::string> notes;       // for people, when there is somewhere to write them
};

// All ranks together. `record`: of the recipe, as checkpoints keep it. Errors, on all ranks:
// checkpoints that were lost or cannot be read, a recipe that changed in stages already begun,
// --from into a run folder that has checkpoints of its own.
Start find_start(const Recipe& recipe, World& world, Checkpoints& checkpoints,
                 const RunnerOptions& options, const nlohmann::json& record);

// Before anything is computed: all that the stages still to run will need (preflight).
void check_before_start(Recipe& recipe, World& world, Start& start);

// A continued run must read the bytes that it began with, wherever they lie now.
void identify_inputs(Run& run, const Start& start);

}  // namespace sala
