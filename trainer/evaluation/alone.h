// Any model by itself: sala-train RECIPE --evaluate FOLDER.
#pragma once

#include <string>

#include "trainer/recipe/recipe.h"
#include "trainer/world.h"

namespace sala {

struct AloneOptions {
  std::string folder;  // Hugging Face folder (an exported hybrid too), or a checkpoint of a run
  std::string out;     // JSON file; empty: NAME.evaluation.json in the working folder
  bool verify_data = false;  // read the token stores again that the recipe's run folder knows
};

// Measures the model in `folder` with the options of the recipe's first evaluate stage, its KL and
// agreement against the recipe's source, and writes lines and a table to the terminal and the
// result to a file: {"folder", "recipe", "evaluation": as evaluate_model returns it}. The token
// stores that it opens are verified as a run's are (trainer/checks/verify_stores.h); no run folder
// is written to. All ranks together; exit code 0, or
// kExitCheckpointed where a signal stopped it (nothing is written then). Errors, on all ranks: no
// evaluate stage, no model in the folder, one of another vocabulary or tokenizer.
int evaluate_alone(Recipe& recipe, World& world, const AloneOptions& options);

}  // namespace sala
