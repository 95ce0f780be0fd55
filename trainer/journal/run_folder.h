// The run's folder: made, locked by one run at a time, and what it holds besides checkpoints.
#pragma once

#include <optional>
#include <string>

namespace sala {

// Creates FOLDER and takes FOLDER/lock (flock plus host, pid and batch job in the file). Throws
// when another live process holds it, naming host, pid and job, and the recipe's key of the folder;
// a stale lock of a dead process is taken over. Rank 0 only.
class RunLock {
 public:
  explicit RunLock(const std::string& folder, const std::string& key = "run.folder");
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

  // False when the lock file was deleted or replaced meanwhile: another run may hold a new one.
  bool is_held() const;
  void check() const;  // throws when it is not held

 private:
  std::string path_;
  int file_ = -1;
};

// Whether a process works on the run of this folder, by what its lock says; nothing where that is
// not known: it may be on another host.
std::optional<bool> run_goes_on(const std::string& folder);

}  // namespace sala
