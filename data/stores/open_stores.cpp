// How many: behind data/stores/open_stores.h.
#include "data/stores/open_stores.h"

#include <unistd.h>

#include <algorithm>

#include "data/file_limit.h"

namespace sala {
namespace {

std::int64_t most_stores() {
  const std::int64_t memory = std::int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE);
  return std::clamp<std::int64_t>(memory / 256 / OpenStores::kStoreBytes, 128, 4096);
}

}  // namespace

OpenStores::OpenStores() : OpenFiles(static_cast<size_t>(share_of_open_files(most_stores()))) {}

}  // namespace sala
