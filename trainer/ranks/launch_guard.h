// Ends this process with one line when MPI does not return because a rank of this host is stopped:
// for the time when there is no Watchdog, the start and the end of MPI. Counts only time in which
// its own thread runs.
#pragma once

#include <atomic>
#include <thread>

namespace sala {

class LaunchGuard {
 public:
  explicit LaunchGuard(const char* operation);  // patience: as the Watchdog's
  ~LaunchGuard();
  LaunchGuard(const LaunchGuard&) = delete;
  LaunchGuard& operator=(const LaunchGuard&) = delete;

 private:
  std::atomic<bool> done_ = false;
  std::thread thread_;
};

}  // namespace sala
