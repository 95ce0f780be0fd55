// The recipe as checkpoints keep it, and what a continued run may not change in it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "trainer/recipe/recipe.h"

namespace sala {

// Every value by its path.
nlohmann::json recipe_record(Recipe& recipe);

struct RecipeChange {
  std::string text;   // "stages[0].align.lr: 1e-3 -> 1e-4"
  int64_t stage = 0;  // from which on the change matters; 0 for what is no stage's
};

// The changes in one line, of many the first ones.
std::string changes_text(const std::vector<RecipeChange>& changes);

// Changes in what `stages_begun` stages were made with; of what may change freely (where files lie,
// how often we save) and of later stages nothing is said.
std::vector<RecipeChange> recipe_changes(const nlohmann::json& saved, const nlohmann::json& now,
                                         int64_t stages_begun);

}  // namespace sala
