// The launcher's folder: a look-up and a file.
#include "trainer/ranks/launch_folder.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace sala {
namespace {

// Empty without a launcher that has one.
std::string launch_folder() {
  const char* name = std::getenv("SALA_LAUNCH_FOLDER");
  return name ? name : "";
}

}  // namespace

bool launcher_asks_to_stop() {
  const std::string folder = launch_folder();
  return !folder.empty() && access((folder + "/stop").c_str(), F_OK) == 0;
}

int code_for_launcher(int code, bool first_rank) {
  if (launch_folder().empty()) return code;
  if (!first_rank) return 0;
  std::FILE* file = std::fopen((launch_folder() + "/code").c_str(), "w");
  if (!file) return code;
  const bool written = std::fprintf(file, "%d\n", code) > 0;
  return std::fclose(file) == 0 && written ? 0 : code;  // a full disk: the others' 0 does no harm
}

}  // namespace sala
