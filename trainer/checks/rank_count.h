// Whether a stage can run on a number of ranks: on how many a run goes on may change with every
// start, so this is a question to the stage that comes next.
#pragma once

#include <optional>
#include <string>

#include "trainer/recipe/recipe.h"
#include "trainer/stage.h"

namespace sala {

struct RankProblem {
  std::string key, text;  // of the recipe; without the stage's name
};

// Nothing where `stage`, and the evaluations that it makes, can run on so many.
std::optional<RankProblem> rank_problem(const Recipe& recipe, const Stage& stage,
                                        int64_t num_ranks);

}  // namespace sala
