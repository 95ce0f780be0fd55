// Which method a recipe means.
#include "trainer/scores/method.h"

#include <fmt/format.h>

namespace sala {

std::unique_ptr<ScoreMethod> make_score_method(Run& run, const ScoreOptions& options,
                                               const std::string& stage, int64_t steps_told) {
  if (!options.measures()) return make_given_scores(options);
  run.teacher();  // reading it is collective; not every rank has an item
  run.world.together("score stage", [&] {
    if (run.aligned) return;
    throw std::runtime_error(
        fmt::format("stage {}: method: {} swaps in aligned mixers; put an align stage before it",
                    stage, options.method));
  });
  if (options.method == "gates") return make_gate_scores(run, options, stage, steps_told);
  return make_swap_scores(run, options, stage);
}

}  // namespace sala
