// Ranks that share sequences, the stage's own and those of its evaluations.
#include "trainer/checks/rank_count.h"

#include <fmt/format.h>

namespace sala {
namespace {

// Its options are those of every evaluation.
const Stage* first_evaluate(const Recipe& recipe) {
  for (const auto& stage : recipe.stages) {
    if (stage->type() == "evaluate") return stage.get();
  }
  return nullptr;
}

}  // namespace

std::optional<RankProblem> rank_problem(const Recipe& recipe, const Stage& stage,
                                        int64_t num_ranks) {
  for (const Stage* runs : {&stage, stage.evaluates() ? first_evaluate(recipe) : nullptr}) {
    if (!runs || num_ranks % runs->context() == 0) continue;
    const int64_t context = runs->context();
    return RankProblem{
        runs->path + ".context",
        fmt::format("{} ranks cannot share sequences by {}: start a multiple of {} ranks, "
                    "or use a divisor of {}",
                    num_ranks, context, context, num_ranks)};
  }
  return std::nullopt;
}

}  // namespace sala
