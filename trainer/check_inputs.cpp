// Data and lengths against the source model, before anything is trained.
#include "trainer/check_inputs.h"

#include <fmt/format.h>

#include "data/needles.h"
#include "data/source.h"

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

void check_inputs(const Run& run) {
  check_lengths(run);
  int file_number = 0;
  for (const auto& [name, source] : run.recipe.data.sources) {
    for (const std::string& path : expand_globs(source.files)) {
      const TokenStore store(path, run.tokenizer);
      if (file_number++ % run.world.size() == run.world.rank()) store.verify_checksum();
    }
  }
  if (!run.recipe.data.needles.empty()) NeedleSet(run.recipe.data.needles, run.tokenizer);
}

}  // namespace sala
