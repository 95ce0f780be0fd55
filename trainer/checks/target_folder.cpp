// Trying a folder out: permissions, read-only mounts, names too long and files in the way all show.
#include "trainer/checks/target_folder.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <system_error>
#include <vector>

#include <fmt/format.h>

#include "trainer/folder/export_target.h"
#include "trainer/recipe/field_values.h"

namespace sala {

namespace {

namespace fs = std::filesystem;

// Folders that go, the last one first, unless somebody has put something into them.
struct Trial {
  std::vector<fs::path> made;
  ~Trial() {
    for (auto path = made.rbegin(); path != made.rend(); ++path) ::rmdir(path->c_str());
  }
};

fs::path plain(const std::string& folder) {
  std::error_code none;
  return (fs::absolute(folder, none) / "").lexically_normal().parent_path();
}

// What is there of FOLDER; `missing` gets the parts that are not, the last one first.
fs::path nearest(const std::string& folder, std::vector<fs::path>& missing) {
  std::error_code none;
  fs::path there = plain(folder);
  while (!fs::exists(fs::symlink_status(there, none)) && there.has_relative_path()) {
    missing.push_back(there.filename());
    there = there.parent_path();
  }
  return there;
}

}  // namespace

std::string why_not_writable(const std::string& folder) {
  std::error_code error;
  std::vector<fs::path> missing;
  const fs::path there = nearest(folder, missing);
  if (!fs::is_directory(there, error)) {
    return fmt::format("{} is no folder", shown(there.string()));
  }
  std::string pattern = (there / ".sala-trial-XXXXXX").string();
  Trial trial;
  if (::mkdtemp(pattern.data()) == nullptr) {
    return fmt::format("cannot write in {}: {}", shown(there.string()), std::strerror(errno));
  }
  trial.made.emplace_back(pattern);
  for (auto part = missing.rbegin(); part != missing.rend(); ++part) {
    trial.made.push_back(trial.made.back() / *part);
    if (fs::create_directory(trial.made.back(), error)) continue;
    trial.made.pop_back();
    return fmt::format("cannot make {}: {}", shown(part->string()), error.message());
  }
  return "";
}

std::string why_no_export(const std::string& folder, const std::string& maker) {
  const std::string obstacle = export_obstacle(folder, maker);
  return obstacle.empty() ? why_not_writable(folder) : shown(folder) + " " + obstacle;
}

bool lies_in(const std::string& path, const std::string& folder) {
  const fs::path inner = plain(path), outer = plain(folder);
  return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
}

FileSystem file_system_of(const std::string& folder) {
  std::vector<fs::path> missing;
  const fs::path there = nearest(folder, missing);
  struct stat status {};
  std::error_code error;
  const fs::space_info space = fs::space(there, error);
  return {::stat(there.c_str(), &status) == 0 ? status.st_dev : 0,
          error ? std::numeric_limits<double>::infinity() : static_cast<double>(space.available)};
}

}  // namespace sala
