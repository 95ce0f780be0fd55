// Least recently used behind data/stores/open_stores.h.
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

OpenStores::OpenStores() : capacity_(static_cast<size_t>(share_of_open_files(most_stores()))) {}

const TokenStore& OpenStores::open(const std::string& path) {
  if (const auto found = where_.find(path); found != where_.end()) {
    stores_.splice(stores_.begin(), stores_, found->second);
    return stores_.front();
  }
  if (stores_.size() == capacity_) close(std::string(stores_.back().path()));
  while (true) {
    try {
      stores_.emplace_front(path);
      break;
    } catch (const TooManyOpenFiles&) {
      if (stores_.empty()) throw;
      close(std::string(stores_.back().path()));
    }
  }
  where_[path] = stores_.begin();
  return stores_.front();
}

void OpenStores::close(const std::string& path) {
  const auto found = where_.find(path);
  if (found == where_.end()) return;
  stores_.erase(found->second);
  where_.erase(found);
}

}  // namespace sala
