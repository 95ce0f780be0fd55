// Ranks that were given different things would train on, each with weights of its own: what must be
// equal is compared before anything is computed, and whatever each rank read for itself after it.
#pragma once

#include <map>
#include <string>

#include "trainer/recipe/recipe.h"
#include "trainer/runner.h"
#include "trainer/world.h"

namespace sala {

using Facts = std::map<std::string, std::string>;

// Collective. Throws a SharedError on all ranks where one rank's facts are not rank 0's: names the
// ranks, their hosts, and what differs with both values.
void require_equal_facts(World& world, const Facts& mine);

// Program, LibTorch, what it computes with, the call, and every value of the recipe.
Facts facts_of_start(World& world, Recipe& recipe, const RunnerOptions& options);

}  // namespace sala
