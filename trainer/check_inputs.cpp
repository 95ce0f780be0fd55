// The bytes of the data, before anything is trained.
#include "trainer/check_inputs.h"

#include "trainer/verify_stores.h"

namespace sala {

bool check_inputs(Run& run, bool verify_again) {
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
