// Fields from a YAML tree: fills the structs, and collects every problem with its place. Nothing is
// thrown for a bad value; it keeps its default and is marked as unread.
#pragma once

#include <functional>
#include <string>

#include "trainer/recipe/fields.h"
#include "trainer/recipe/problems.h"
#include "trainer/recipe/yaml_reader.h"

namespace sala {

// Reads one mapping: `describe` names its keys; whatever else it holds is a problem. `path` is the
// mapping's own key path, "" at the top.
void read_fields(const YamlNode& node, const std::string& path, RecipeProblems& problems,
                 const std::function<void(Fields&)>& describe);

}  // namespace sala
