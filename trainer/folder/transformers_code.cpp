// Looks for the files of transformers_code() in a folder.
#include "trainer/folder/transformers_code.h"

#include <algorithm>

#include "data/files/file_calls.h"

namespace sala {

bool has_transformers_code(const std::string& folder) {
  const std::vector<CodeFile>& files = transformers_code();
  return std::all_of(files.begin(), files.end(), [&](const CodeFile& file) {
    return path_exists(folder + "/" + std::string(file.name));
  });
}

}  // namespace sala
