// The run's folder: made, locked by one run at a time, and what it holds besides checkpoints.
#pragma once

#include <string>

namespace sala {

// Creates FOLDER and takes FOLDER/lock (flock plus host, pid and batch job in the file). Throws
// when another live process holds it, naming host, pid and job; a stale lock of a dead process is
// taken over. Rank 0 only.
class RunLock {
 public:
  explicit RunLock(const std::string& folder);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

  // Throws when the lock file was deleted or replaced meanwhile: another run may hold a new one.
  void check() const;

 private:
  std::string path_;
  int file_ = -1;
};

// SIGTERM, SIGINT and SIGUSR1 set a flag that the runner reads at every boundary of every loop.
void catch_stop_signals();
bool stop_requested();
// Exit code of a run that stopped on a signal after writing its checkpoint: run it again to go on.
inline constexpr int kExitCheckpointed = 75;

}  // namespace sala
