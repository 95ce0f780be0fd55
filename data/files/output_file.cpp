// What may be replaced, and what not.
#include "data/files/output_file.h"

#include <filesystem>
#include <stdexcept>

#include "data/files/file_calls.h"
#include "data/files/input_file.h"

namespace sala {

namespace fs = std::filesystem;

void check_output_file(const std::string& path, const std::string& kind,
                       const std::function<bool()>& is_kind) {
  const std::string target = replaceable_file(path);
  const fs::path folder = fs::path(target).parent_path();
  std::error_code unknown;
  if (!folder.empty() && !fs::is_directory(folder, unknown)) {
    throw std::runtime_error(path + ": there is no folder " + folder.string() +
                             ": make it, or name another file");
  }
  if (!fs::exists(target, unknown)) return;
  try {
    if (is_kind()) return;
  } catch (const std::exception&) {  // something else
  }
  throw std::runtime_error(path + ": is there already and holds no " + kind +
                           ": name another file, or delete it");
}

bool is_json_with(const std::string& path, std::initializer_list<const char*> keys) {
  constexpr int64_t kMostBytes = int64_t{1} << 30;
  const nlohmann::json json = read_json_file(path, kMostBytes);
  for (const char* key : keys) {
    if (!json.is_object() || !json.contains(key)) return false;
  }
  return true;
}

}  // namespace sala
