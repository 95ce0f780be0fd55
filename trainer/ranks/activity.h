// What this rank's main thread is doing, for the watchdogs of the other ranks. Written by the main
// thread, read by the watchdog's.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

namespace sala {

struct ActivityReport {
  std::string stage;  // empty before the first
  int64_t step = 0;
  std::string operation = "computing";
  bool waits_for_ranks = false;  // the operation ends only when other ranks come to it
  int64_t count = 0;             // of changes: a rank whose count moves is not stuck
  int64_t bytes = 0;             // that the process has read and written (filled by the watchdog)
  double seconds = 0;            // in this operation
  std::string error;             // met in the background by collectives on the device
};

class Activity {
 public:
  static Activity& here();  // of this process
  void at(const std::string& stage, int64_t step);
  void moves();  // progress inside an operation, such as the next chunk
  ActivityReport report() const;

 private:
  friend class Doing;
  using Clock = std::chrono::steady_clock;
  mutable std::mutex mutex_;
  ActivityReport report_;
  Clock::time_point since_ = Clock::now();
};

// The operation of the enclosing scope; the one around it comes back at the end.
class Doing {
 public:
  enum Kind { kWork, kWait };
  Doing(std::string operation, Kind kind);
  ~Doing();
  Doing(const Doing&) = delete;
  Doing& operator=(const Doing&) = delete;

 private:
  std::string before_;
  bool waited_before_ = false;
};

}  // namespace sala
