// flock is the lock; the file's text only tells people who holds it. A dead process holds no flock,
// so what it left is taken over. Where the file system has no locks, the text decides.
#include "trainer/journal/folder_lock.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "data/files/atomic_file.h"
#include "data/files/file_calls.h"
#include "trainer/ranks/environment.h"

namespace sala {
namespace {

std::string batch_job() {
  for (const char* name : {"SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID"}) {
    if (const char* job = std::getenv(name)) return job;
  }
  return "none";
}

nlohmann::json read_holder(int file) {
  char text[1024] = "";
  const ssize_t length = pread(file, text, sizeof text - 1, 0);
  const auto json =
      nlohmann::json::parse(text, text + std::max<ssize_t>(length, 0), nullptr, false);
  return json.is_object() ? json : nlohmann::json::object();
}

constexpr const char* kLockStart = "{\"host\":";

// Only a lock file of ours may be written over: one that was let go of (empty), whose holder died
// (its text), or that a power loss tore (a part of it, or zeros).
void check_lock_is_ours(const std::string& path, const std::string& key, int file) {
  char text[16] = "";
  const ssize_t length = pread(file, text, std::strlen(kLockStart), 0);
  const std::string start(text, static_cast<size_t>(std::max<ssize_t>(length, 0)));
  const bool zeros = start.find_first_not_of('\0') == std::string::npos;
  if (length >= 0 && (zeros || std::string(kLockStart).starts_with(start))) return;
  throw std::runtime_error(path +
                           ": expected a lock file of sala-train, found another file; move it "
                           "elsewhere or choose another " +
                           key);
}

[[noreturn]] void refuse(const std::string& path, const nlohmann::json& holder,
                         const std::string& advice) {
  throw std::runtime_error(path + ": the folder is in use by process " +
                           std::to_string(holder.value("pid", 0)) + " on " +
                           holder.value("host", "an unknown host") + " (batch job " +
                           holder.value("job", "unknown") + "); " + advice);
}

// Without locks in the file system: a process of this host can be asked, one of another host
// cannot.
void check_holder_without_locks(const std::string& path, const std::string& key,
                                const nlohmann::json& holder) {
  if (!holder.contains("pid")) return;
  if (holder.value("host", "") != host_name()) {
    refuse(path, holder, "this file system has no locks: delete this file if that run is dead");
  }
  const pid_t pid = holder.value("pid", 0);
  if (pid != getpid() && (kill(pid, 0) == 0 || errno == EPERM)) {
    refuse(path, holder, "wait for it, stop it, or choose another " + key);
  }
}

}  // namespace

FolderLock::FolderLock(const std::string& folder, const std::string& key)
    : path_(folder + "/lock") {
  try {
    make_folder_durably(folder);
  } catch (const FileError& error) {
    throw std::runtime_error(folder + ": cannot make the folder: " + std::strerror(error.code()) +
                             "; choose another " + key);
  }
  file_ = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0644);
  if (file_ < 0) {
    throw std::runtime_error(path_ + ": cannot open the lock file: " + std::strerror(errno) +
                             "; check the folder's permissions, and that it is no link");
  }
  try {
    check_lock_is_ours(path_, key, file_);
    const nlohmann::json holder = read_holder(file_);
    if (flock(file_, LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK) {
        refuse(path_, holder, "wait for it, stop it, or choose another " + key);
      }
      check_holder_without_locks(path_, key, holder);
    }
    const std::string text =
        nlohmann::json{{"host", host_name()}, {"pid", getpid()}, {"job", batch_job()}}.dump() +
        "\n";
    const bool written = ftruncate(file_, 0) == 0 &&
                         pwrite(file_, text.data(), text.size(), 0) == ssize_t(text.size()) &&
                         fsync(file_) == 0;
    if (!written) {
      throw std::runtime_error(path_ + ": cannot write the lock file: " + std::strerror(errno));
    }
  } catch (const std::exception&) {
    close(file_);
    throw;
  }
}

// The file stays: removing it would let a third process lock a new one while a second waits on
// this.
FolderLock::~FolderLock() {
  if (ftruncate(file_, 0) != 0) return;  // the lock goes with the process
  close(file_);
}

bool FolderLock::is_held() const {
  struct stat mine {};
  struct stat there {};
  if (fstat(file_, &mine) != 0) return true;  // a disk that refuses is no other run
  if (stat(path_.c_str(), &there) != 0) return errno != ENOENT && errno != ENOTDIR;
  return mine.st_ino == there.st_ino && mine.st_dev == there.st_dev;
}

void FolderLock::check() const {
  if (is_held()) return;
  throw std::runtime_error(path_ +
                           ": deleted or replaced while this run held it, so another run may be "
                           "using this folder; stopped before writing to it. Run again when no "
                           "other does");
}

std::optional<bool> holder_lives(const std::string& folder) {
  const std::string path = folder + "/lock";
  if (!path_exists(path)) return {};
  const auto holder = nlohmann::json::parse(read_text_file(path), nullptr, false);
  if (!holder.is_object() || !holder.contains("pid")) return false;  // let go of
  if (holder.value("host", "") != host_name()) return {};
  const pid_t pid = holder.value("pid", 0);
  return pid > 0 && (kill(pid, 0) == 0 || errno == EPERM);
}

}  // namespace sala
