// Everything a run needs and a look at its surroundings can tell: the source folder, every store
// and the needle set, the folders that will be written, device, memory and disk. One list of
// checks:
// `--check` goes through it, and every run does before anything is computed. Reads headers, the
// needle set and as many tokens as a held-out row has, not the data; needs no GPU.
#pragma once

#include <limits>
#include <optional>
#include <string>

#include "trainer/recipe/recipe.h"

namespace sala {

// The machine that a plan is for.
struct CheckDevice {
  bool cuda = false;
  std::string name;         // as printed
  double memory_bytes = 0;  // of one GPU, or of the node for CPU ranks; 0 = unknown, not compared
  double peak_flops = 0;    // of one GPU (datasheet), or what all cores of the node reach together
  bool here = true;         // false: this machine has none, the plan is for another
};

struct PreflightOptions {
  const CheckDevice& device;
  int64_t num_ranks = 1;
  int64_t ranks_per_node = 1;
  int64_t first_stage = 0;  // of those that are still to run; earlier ones are not looked at
  bool continues = false;   // a checkpoint of this run is there, so its folders are its own
  bool writes = true;       // whether folders are tried out, and room for what goes there
  int64_t num_stages = std::numeric_limits<int64_t>::max();  // from first_stage on, at most
  bool this_start = false;  // a later one may have other ranks: only the first stage needs these
};

// Adds every problem to the recipe's, and what may go wrong but need not to `warnings`. Returns
// what a plan needs, when the source's config.json can be read.
std::optional<PlanContext> preflight(Recipe& recipe, const PreflightOptions& options,
                                     std::vector<std::string>& warnings);

}  // namespace sala
