// RLIMIT_NOFILE.
#include "data/file_limit.h"

#include <sys/resource.h>

#include <algorithm>

namespace sala {

void raise_file_limit() {
  constexpr rlim_t kEnough = 1 << 16;
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= kEnough) return;
  limit.rlim_cur = std::min(limit.rlim_max, kEnough);
  static_cast<void>(::setrlimit(RLIMIT_NOFILE, &limit));
}

int64_t share_of_open_files(int64_t most) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 8;
  return static_cast<int64_t>(std::clamp<rlim_t>(limit.rlim_cur / 8, 8, static_cast<rlim_t>(most)));
}

}  // namespace sala
