// The Python files that a hybrid's folder carries, by which transformers loads it without the hub:
// trainer/folder/transformers/*.py as they were when the program was built, so that an installed
// program needs no path to them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace sala {

struct CodeFile {
  std::string_view name, text;
};

// Defined in a file that CMakeLists.txt writes from the Python files. Their classes are those that
// hybrid_config_json names in auto_map.
const std::vector<CodeFile>& transformers_code();

// Whether FOLDER has all of these files, in any version; else transformers cannot load a hybrid
// there without the hub.
bool has_transformers_code(const std::string& folder);

}  // namespace sala
