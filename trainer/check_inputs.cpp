// The bytes of the data, before anything is trained.
#include "trainer/check_inputs.h"

#include "data/atomic_file.h"
#include "data/hash.h"
#include "trainer/rank_agreement.h"
#include "trainer/verify_stores.h"

namespace sala {

namespace {

std::string hash_of_file(const std::string& path) {
  const std::string text = read_text_file(path);
  return xxh3_64_hex(text.data(), text.size());
}

Facts small_files(const Run& run) {
  Facts facts;
  facts["tokenizer.json of " + run.recipe.source + " (XXH3)"] = run.tokenizer.hash;
  facts["config.json of " + run.recipe.source + " (XXH3)"] =
      hash_of_file(run.recipe.source + "/config.json");
  const std::string& needles = run.recipe.data.needles;
  if (!needles.empty()) facts[needles + " (XXH3)"] = hash_of_file(needles);
  return facts;
}

}  // namespace

bool check_inputs(Run& run, bool verify_again) {
  Facts facts;
  run.world.together("", [&] { facts = small_files(run); });
  require_equal_facts(run.world, facts);
  return verify_stores(run, verify_again);
}

}  // namespace sala
