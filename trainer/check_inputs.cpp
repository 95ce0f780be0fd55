// Data and lengths against the source model, before anything is trained.
#include "trainer/check_inputs.h"

#include <fmt/format.h>

#include "data/atomic_file.h"
#include "data/hash.h"
#include "data/needles.h"
#include "data/source.h"

namespace sala {

namespace {

std::string hash_of_file(const std::string& path) {
  const std::string text = read_text_file(path);
  return xxh3_64_hex(text.data(), text.size());
}

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

Facts check_inputs(const Run& run) {
  check_lengths(run);
  Facts facts;
  facts["tokenizer.json of " + run.recipe.source + " (XXH3)"] = run.tokenizer.hash;
  facts["config.json of " + run.recipe.source + " (XXH3)"] =
      hash_of_file(run.recipe.source + "/config.json");
  int file_number = 0;
  for (const auto& [name, source] : run.recipe.data.sources) {
    for (const std::string& path : expand_globs(source.files)) {
      const TokenStore store(path, run.tokenizer);
      facts[path + " (XXH3)"] = store.checksum();
      if (file_number++ % run.world.size() == run.world.rank()) store.verify_checksum();
    }
  }
  if (!run.recipe.data.needles.empty()) {
    NeedleSet(run.recipe.data.needles, run.tokenizer);
    facts[run.recipe.data.needles + " (XXH3)"] = hash_of_file(run.recipe.data.needles);
  }
  return facts;
}

}  // namespace sala
