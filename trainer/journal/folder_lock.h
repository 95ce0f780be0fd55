// A folder that one process of a kind writes at a time, made and locked: the run folder (a run), a
// teacher cache (whoever fills it).
#pragma once

#include <optional>
#include <string>

namespace sala {

// Creates FOLDER and takes FOLDER/lock (flock plus host, pid and batch job in the file). Throws
// when another live process holds it, naming host, pid and job, and `key`, the recipe's key of the
// folder; a stale lock of a dead process is taken over. Rank 0 only.
class FolderLock {
 public:
  FolderLock(const std::string& folder, const std::string& key);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

  // False when the lock file was deleted or replaced meanwhile: another process may hold a new one.
  bool is_held() const;
  void check() const;  // throws when it is not held

 private:
  std::string path_;
  int file_ = -1;
};

// Whether the process lives that holds the lock of this folder, by what the file says; nothing
// where that is not known: it may be on another host.
std::optional<bool> holder_lives(const std::string& folder);

}  // namespace sala
