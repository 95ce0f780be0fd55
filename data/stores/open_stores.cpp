// Least recently used behind data/stores/open_stores.h.
#include "data/stores/open_stores.h"

#include <sys/resource.h>

#include <algorithm>

namespace sala {

OpenStores::OpenStores() : capacity_(128) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    capacity_ = static_cast<size_t>(std::clamp<rlim_t>(limit.rlim_cur / 8, 8, 128));
  }
}

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
