// A folder that one process of a kind writes at a time, made and locked: the run folder (a run), a
// teacher cache (whoever fills it).
#pragma once

#include <chrono>
#include <optional>
#include <string>

namespace sala {

// Creates FOLDER and takes FOLDER/lock (flock plus host, pid and batch job in the file). Throws
// when another live process holds it, naming host, pid and job, and `key`, the recipe's key of the
// folder; a stale lock of a dead process is taken over. Rank 0 only.
//
// A job that was put back into the queue may come up on another host, before the file server has
// dropped the locks of the one it was on: it waits for those of its own job, `patience` long, or
// until the run is asked to stop.
class FolderLock {
 public:
  FolderLock(const std::string& folder, const std::string& key,
             std::chrono::seconds patience = std::chrono::minutes(2));
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

  // False when the lock file was deleted or replaced meanwhile, or has the text of another process
  // where the file system has no locks: it may use the folder.
  bool is_held() const;
  void check() const;  // throws when it is not held

 private:
  void take(const std::string& key, std::chrono::seconds patience);
  void write_text();

  std::string path_, text_;
  int file_ = -1;
  bool locked_ = false;  // false: the file system has no locks, and the text decides
};

// Whether the process lives that holds the lock of this folder, by what the file says; nothing
// where that is not known: it may be on another host.
std::optional<bool> holder_lives(const std::string& folder);

}  // namespace sala
