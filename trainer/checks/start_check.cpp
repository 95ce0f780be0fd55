// The bytes of the data, before anything is trained.
#include "trainer/checks/start_check.h"

#include "trainer/checks/input_identity.h"
#include "trainer/checks/verify_stores.h"
#include "trainer/ranks/agreement.h"

namespace sala {

namespace {

Facts small_files(const Run& run) {
  Facts facts;
  facts["tokenizer.json of " + run.recipe.source + " (XXH3)"] = run.tokenizer.hash;
  facts["config.json of " + run.recipe.source + " (XXH3)"] =
      hash_of_file(run.recipe.source + "/config.json");
  std::vector<std::string> files = run.recipe.data.choices;
  files.insert(files.end(), {run.recipe.data.needles, run.recipe.data.tasks});
  for (const std::string& file : files) {
    if (!file.empty()) facts[file + " (XXH3)"] = hash_of_file(file);
  }
  return facts;
}

}  // namespace

void require_equal_files(Run& run) {
  Facts facts;
  run.world.together("", [&] { facts = small_files(run); });
  require_equal_facts(run.world, facts);
}

bool check_inputs(Run& run, bool verify_again) {
  require_equal_files(run);
  return verify_stores(run, verify_again);
}

}  // namespace sala
