// Facts from CMake, git and the libraries.
#include "trainer/version.h"

#include <fmt/format.h>
#include <torch/headeronly/version.h>

#include "trainer/ranks/mpi_group.h"

namespace sala {

extern const char* const kRevision;  // of a file that revision.cmake writes

std::string version_text(const std::string& program) {
  const std::string revision = kRevision;
  return fmt::format("{} {}{}\nLibTorch {}, {}, {}", program, SALA_VERSION,
                     revision.empty() ? "" : " (" + revision + ")", TORCH_VERSION, SALA_CUDA_TEXT,
                     mpi_library());
}

}  // namespace sala
