// A run that begins with the checkpoint of another (--from). A fork goes on behind the stages that
// the checkpoint has behind it, where the recipe begins with the same ones (by type and name; their
// values may differ); else it begins at the recipe's first stage. A checkpoint from inside a stage
// goes on at its step where the stage that begins is that one, by type and name; any other starts
// at step 0, with the weights and without the optimizer's state.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "trainer/recipe/beginning.h"
#include "trainer/recipe/recipe.h"

namespace sala {

// What `recipe` begins with: as its run folder's checkpoints tell where they are of a fork (of
// `from`, unless that is empty), else the checkpoint folder `from`, else the source. Reads
// manifests alone, on this rank alone. Throws where there is no such checkpoint.
Beginning find_beginning(Recipe& recipe, const std::string& from);

// Whether two paths lead to one checkpoint, which need not be there any more.
bool is_same_checkpoint(const std::string& a, const std::string& b);

// For a fork's own checkpoints.
nlohmann::json beginning_record(const Beginning& begin);

}  // namespace sala
