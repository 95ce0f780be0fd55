// A thread that looks at the ranks beside this one, now and then.
#include "trainer/ranks/launch_guard.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "trainer/ranks/environment.h"
#include "trainer/ranks/watchdog.h"

namespace sala {
namespace {

constexpr auto kLookPause = std::chrono::milliseconds(20);
constexpr double kLookPauseSeconds = 0.02;
constexpr int kTicksPerLook = 25;

}  // namespace

LaunchGuard::LaunchGuard(const char* operation) {
  double timeout_seconds = 0;
  try {
    timeout_seconds = watchdog_timeout();
  } catch (const std::exception&) {
    return;  // told when all ranks can tell it together
  }
  if (timeout_seconds <= 0 || !launched_rank()) return;
  thread_ = std::thread([this, operation, timeout_seconds] {
    double stopped_for = 0;
    for (int tick = 1; !done_; ++tick) {
      std::this_thread::sleep_for(kLookPause);
      if (tick % kTicksPerLook != 0) continue;
      const std::vector<int> stopped = stopped_ranks_here();
      stopped_for = stopped.empty() ? 0 : stopped_for + kTicksPerLook * kLookPauseSeconds;
      if (stopped_for < timeout_seconds || done_) continue;
      // The first rank that runs speaks; the launcher ends the others.
      usleep(static_cast<useconds_t>(std::min(*launched_rank(), 5)) * 2'000'000);
      const std::string line = fmt::format(
          "sala-train: rank {} on {} has been stopped (SIGSTOP) for {:.0f} s, in {}; rank {} waits "
          "for "
          "it and ends the job; run the same command again\n",
          fmt::join(stopped, ", "), host_name(), stopped_for, operation, *launched_rank());
      std::fputs(line.c_str(), stderr);
      _exit(1);
    }
  });
}

LaunchGuard::~LaunchGuard() {
  done_ = true;
  if (thread_.joinable()) thread_.join();
}

}  // namespace sala
