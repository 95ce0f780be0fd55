// `sala-train --check`: what a recipe will do and cost, before anything is allocated. Reads the
// recipe, the source's config.json and the names of the data files; needs no GPU.
#pragma once

#include <ostream>
#include <string>

#include "trainer/recipe.h"

namespace sala {

// The machine that the estimate is for.
struct CheckDevice {
  bool cuda = false;
  std::string name;         // as printed
  double memory_bytes = 0;  // of one GPU, or of the node for CPU ranks; 0 = unknown, not compared
  double peak_flops = 0;    // of one GPU (datasheet), or what all cores of the node reach together
};

// What run.device means here. `cuda` without a GPU here: an H100 is assumed, memory unknown.
CheckDevice check_device(const RunOptions& run);

// Prints the resolved recipe, memory per rank and stage, tokens, steps, FLOPs, time and disk, and
// every problem. Returns the exit code: 0 when the run can start, 2 when it cannot.
int check_recipe(Recipe& recipe, const CheckDevice& device, int64_t num_ranks, std::ostream& out);

// The same for this machine, on standard output.
int check_recipe(Recipe& recipe, int64_t num_ranks);

}  // namespace sala
