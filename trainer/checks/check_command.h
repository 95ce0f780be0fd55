// `sala-train --check`: what a recipe will do and cost, before anything is allocated, and
// everything that would stop it (trainer/checks/preflight.h); needs no GPU.
#pragma once

#include <ostream>
#include <string>

#include "trainer/checks/preflight.h"
#include "trainer/recipe/recipe.h"

namespace sala {

// What run.device means here. `cuda` without a GPU here: an H100 is assumed, memory unknown.
CheckDevice check_device(const RunOptions& run);
CheckDevice check_device(at::Device device);

// Prints the resolved recipe, memory per rank and stage, tokens, steps, FLOPs, time and disk, and
// every problem. Returns the exit code: 0 when the run can start, 2 when it cannot.
int check_recipe(Recipe& recipe, const CheckDevice& device, int64_t num_ranks, std::ostream& out);

// The same for this machine, on standard output.
int check_recipe(Recipe& recipe, int64_t num_ranks);

}  // namespace sala
