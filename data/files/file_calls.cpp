// POSIX calls behind data/files/file_calls.h.
#include "data/files/file_calls.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "data/files/system_advice.h"

namespace sala {
namespace {

constexpr int kMaxTries = 100;

// Calls until it succeeds, a bounded number of times where the system asks to try again.
template <class Call>
auto call_again(const Call& call) {
  for (int tries = 1;; ++tries) {
    const auto result = call();
    if (result >= 0 || tries == kMaxTries) return result;
    if (errno == EAGAIN) {
      ::usleep(1000);
    } else if (errno != EINTR) {
      return result;
    }
  }
}

bool is_absent(int code) { return code == ENOENT || code == ENOTDIR; }

const char* kind_of(const struct stat& status) {
  if (S_ISREG(status.st_mode)) return "a file";
  if (S_ISDIR(status.st_mode)) return "a folder";
  if (S_ISLNK(status.st_mode)) return "a link";
  if (S_ISFIFO(status.st_mode)) return "a FIFO";
  if (S_ISSOCK(status.st_mode)) return "a socket";
  return "a device";
}

// Whether something is at `path`; its kind in `status`.
bool look(const std::string& path, struct stat& status) {
  if (call_again([&] { return ::stat(path.c_str(), &status); }) == 0) return true;
  if (is_absent(errno)) return false;
  throw FileError(path, "look at it", errno);
}

}  // namespace

FileError::FileError(const std::string& path, const std::string& what, int code)
    : std::runtime_error(path + ": cannot " + what + ": " + std::strerror(code) +
                         system_advice(code)),
      code_(code) {}

Descriptor::Descriptor(const std::string& path, int flags) : path_(path) {
  // Not blocking: opening a FIFO would wait for its other end.
  const int all = flags | O_CLOEXEC | O_NONBLOCK;
  number_ = call_again([&] { return ::open(path.c_str(), all, 0644); });
  if (number_ < 0) throw FileError(path, flags & O_CREAT ? "create it" : "open it", errno);
  struct stat status {};
  const bool known = call_again([&] { return ::fstat(number_, &status); }) == 0;
  const int code = errno;
  if (known && (S_ISREG(status.st_mode) || ((flags & O_DIRECTORY) && S_ISDIR(status.st_mode)))) {
    return;
  }
  ::close(number_);
  number_ = -1;
  if (!known) throw FileError(path, "look at it", code);
  throw std::runtime_error(path + ": expected a file, found " + kind_of(status));
}

Descriptor::Descriptor(Descriptor&& other) noexcept
    : path_(std::move(other.path_)), number_(std::exchange(other.number_, -1)) {}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(number_, other.number_);
  return *this;
}

Descriptor::~Descriptor() {
  if (number_ >= 0) ::close(number_);
}

int64_t Descriptor::size() const {
  struct stat status {};
  if (call_again([&] { return ::fstat(number_, &status); }) != 0) {
    throw FileError(path_, "look at it", errno);
  }
  return status.st_size;
}

std::string Descriptor::read(int64_t offset, int64_t num_bytes) const {
  std::string text(static_cast<size_t>(num_bytes), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t got = call_again([&] {
      return ::pread(number_, text.data() + done, text.size() - done,
                     static_cast<off_t>(offset) + static_cast<off_t>(done));
    });
    if (got < 0) throw FileError(path_, "read it", errno);
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  text.resize(done);
  return text;
}

void Descriptor::write(std::string_view text) const {
  while (!text.empty()) {
    const ssize_t written = call_again([&] { return ::write(number_, text.data(), text.size()); });
    if (written < 0) throw FileError(path_, "write", errno);
    text.remove_prefix(static_cast<size_t>(written));
  }
}

void Descriptor::truncate(int64_t num_bytes) const {
  if (call_again([&] { return ::ftruncate(number_, num_bytes); }) != 0) {
    throw FileError(path_, "cut it to " + std::to_string(num_bytes) + " bytes", errno);
  }
}

void Descriptor::sync() const {
  if (call_again([&] { return ::fsync(number_); }) != 0) throw FileError(path_, "fsync", errno);
}

bool path_exists(const std::string& path) {
  struct stat status {};
  return look(path, status);
}

bool is_folder(const std::string& path) {
  struct stat status {};
  return look(path, status) && S_ISDIR(status.st_mode);
}

std::vector<std::string> names_in_folder(const std::string& folder) {
  std::vector<std::string> names;
  try {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      names.push_back(entry.path().filename().string());
    }
  } catch (const std::filesystem::filesystem_error& error) {
    throw FileError(folder, "list the folder", error.code().value());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string replaceable_file(const std::string& path) {
  struct stat status {};
  if (call_again([&] { return ::lstat(path.c_str(), &status); }) != 0) {
    if (is_absent(errno)) return path;
    throw FileError(path, "look at it", errno);
  }
  std::string target = path;
  if (S_ISLNK(status.st_mode)) {
    char* const real = ::realpath(path.c_str(), nullptr);
    if (!real) throw FileError(path, "follow the link", errno);
    target = real;
    std::free(real);
    if (!look(target, status)) return target;
  }
  if (S_ISREG(status.st_mode)) return target;
  throw std::runtime_error(path + ": expected a file or nothing to write to, found " +
                           kind_of(status));
}

}  // namespace sala
