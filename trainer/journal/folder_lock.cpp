// flock is the lock; the file's text only tells people who holds it. A dead process holds no flock,
// so what it left is taken over. Where the file system has no locks, the text decides.
#include "trainer/journal/folder_lock.h"

#include <fcntl.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <thread>

#include "data/files/atomic_file.h"
#include "data/files/file_calls.h"
#include "trainer/ranks/environment.h"
#include "trainer/ranks/stop_signals.h"

namespace sala {
namespace {

std::string batch_job() {
  for (const char* name : {"SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID"}) {
    if (const char* job = std::getenv(name)) return job;
  }
  return "none";
}

constexpr int64_t kMostText = 1024;

// Nothing where it cannot be read.
std::optional<std::string> read_text(int file) {
  char text[kMostText];
  const ssize_t length = pread(file, text, sizeof text, 0);
  if (length < 0) return std::nullopt;
  return std::string(text, static_cast<size_t>(length));
}

nlohmann::json read_holder(int file) {
  const auto json = nlohmann::json::parse(read_text(file).value_or(""), nullptr, false);
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

bool is_here(const nlohmann::json& holder) { return holder.value("host", "") == host_name(); }

bool lives_here(const nlohmann::json& holder) {
  const pid_t pid = holder.value("pid", 0);
  return is_here(holder) && pid > 0 && (kill(pid, 0) == 0 || errno == EPERM);
}

// The job that this process is of: an earlier start of it, on whatever host, has ended.
bool is_of_own_job(const nlohmann::json& holder) {
  const std::string job = batch_job();
  return job != "none" && holder.value("job", "") == job;
}

// Without locks in the file system: a process of this host can be asked, one of another host
// cannot.
void check_holder_without_locks(const std::string& path, const std::string& key,
                                const nlohmann::json& holder) {
  if (!holder.contains("pid")) return;
  if (!is_here(holder) && !is_of_own_job(holder)) {
    refuse(path, holder, "this file system has no locks: delete this file if that run is dead");
  }
  if (holder.value("pid", 0) != getpid() && lives_here(holder)) {
    refuse(path, holder, "wait for it, stop it, or choose another " + key);
  }
}

// flock, which a host that is gone may hold for a while longer. The error, 0 for none.
int lock_patiently(const std::string& path, int file, const nlohmann::json& holder,
                   std::chrono::seconds patience) {
  constexpr std::chrono::milliseconds kStep(500);
  const auto try_lock = [&] { return flock(file, LOCK_EX | LOCK_NB) == 0 ? 0 : errno; };
  int error = try_lock();
  if (error != EWOULDBLOCK || !is_of_own_job(holder) || lives_here(holder)) return error;
  spdlog::warn("{} is still held by process {} on {}, of this job: waiting up to {} s for it", path,
               holder.value("pid", 0), holder.value("host", "an unknown host"), patience.count());
  const auto end = std::chrono::steady_clock::now() + patience;
  while (error == EWOULDBLOCK && std::chrono::steady_clock::now() < end && !stop_requested()) {
    std::this_thread::sleep_for(kStep);
    error = try_lock();
  }
  return error;
}

}  // namespace

FolderLock::FolderLock(const std::string& folder, const std::string& key,
                       std::chrono::seconds patience)
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
    take(key, patience);
    write_text();
  } catch (const std::exception&) {
    close(file_);
    throw;
  }
}

void FolderLock::take(const std::string& key, std::chrono::seconds patience) {
  check_lock_is_ours(path_, key, file_);
  const nlohmann::json holder = read_holder(file_);
  const int error = lock_patiently(path_, file_, holder, patience);
  locked_ = error == 0;
  if (locked_) return;
  if (error == EWOULDBLOCK) refuse(path_, holder, "wait for it, stop it, or choose another " + key);
  check_holder_without_locks(path_, key, holder);
}

void FolderLock::write_text() {
  text_ =
      nlohmann::json{{"host", host_name()}, {"pid", getpid()}, {"job", batch_job()}}.dump() + "\n";
  const bool written = ftruncate(file_, 0) == 0 &&
                       pwrite(file_, text_.data(), text_.size(), 0) == ssize_t(text_.size()) &&
                       fsync(file_) == 0;
  if (written) return;
  throw std::runtime_error(path_ + ": cannot write the lock file: " + std::strerror(errno));
}

// The file stays: removing it would let a third process lock a new one while a second waits on
// this.
FolderLock::~FolderLock() {
  const bool taken_over = !locked_ && !is_held();       // the text is the other's
  if (!taken_over && ftruncate(file_, 0) != 0) return;  // the lock goes with the process
  close(file_);
}

bool FolderLock::is_held() const {
  struct stat mine {};
  struct stat there {};
  if (fstat(file_, &mine) != 0) return true;  // a disk that refuses is no other run
  if (stat(path_.c_str(), &there) != 0) return errno != ENOENT && errno != ENOTDIR;
  if (mine.st_ino != there.st_ino || mine.st_dev != there.st_dev) return false;
  return locked_ || read_text(file_).value_or(text_) == text_;
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
  if (!is_here(holder)) return {};
  return lives_here(holder);
}

}  // namespace sala
