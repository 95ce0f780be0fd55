// Data and lengths against the source model, before anything is trained.
#include "trainer/check_inputs.h"

#include <fmt/format.h>

#include "data/needles.h"
#include "trainer/verify_stores.h"

namespace sala {

namespace {

// Longest row or prompt that each stage runs through the source model.
void check_lengths(const Run& run) {
  const int64_t window = run.source.sliding_window;
  if (window <= 0) return;
  for (const auto& stage : run.recipe.stages) {
    if (stage->longest_row() <= window) continue;
    throw std::runtime_error(
        fmt::format("stage {}: rows of {} tokens, but {} attends only {} tokens back "
                    "(sliding_window) and is run "
                    "here with full attention: use rows and prompts of at most {} tokens",
                    stage->name, stage->longest_row(), run.recipe.source, window, window));
  }
}

}  // namespace

bool check_inputs(Run& run, bool verify_again) {
  run.world.together("", [&] {
    check_lengths(run);
    if (!run.recipe.data.needles.empty()) NeedleSet(run.recipe.data.needles, run.tokenizer);
  });
  if (!verify_stores(run, verify_again)) return false;
  run.world.together("", [&] {
    if (run.world.rank() != 0) return;
    for (const auto& stage : run.recipe.stages) {
      stage->check_data(run.recipe, run.tokenizer, *run.stores);
    }
  });
  return true;
}

}  // namespace sala
