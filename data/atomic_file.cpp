// POSIX calls behind data/atomic_file.h.
#include "data/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace sala {
namespace {

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  const int code = errno;
  std::string advice;
  if (code == ENOSPC || code == EDQUOT) advice = "; free space and run again";
  if (code == EACCES || code == EROFS) advice = "; check the permissions of the folder";
  if (code == ENOENT) advice = "; the folder does not exist";
  throw std::runtime_error(path + ": cannot " + what + ": " + std::strerror(code) + advice);
}

// Closes on every way out; -1 means nothing to close.
struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

void write_and_sync(const std::string& path, std::string_view text) {
  Descriptor file{::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)};
  if (file.fd < 0) fail(path, "create the file");
  while (!text.empty()) {
    const ssize_t written = ::write(file.fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(path, "write");
    text.remove_prefix(static_cast<size_t>(written));
  }
  if (::fsync(file.fd) != 0) fail(path, "fsync");
}

}  // namespace

void write_file_atomically(const std::string& path, std::string_view text) {
  const std::string temporary = path + ".tmp";
  try {
    write_and_sync(temporary, text);
    rename_durably(temporary, path);
  } catch (const std::exception&) {
    ::unlink(temporary.c_str());
    throw;
  }
}

void rename_durably(const std::string& temporary, const std::string& path) {
  {
    Descriptor file{::open(temporary.c_str(), O_RDONLY | O_CLOEXEC)};
    if (file.fd < 0) fail(temporary, "open for fsync");
    if (::fsync(file.fd) != 0) fail(temporary, "fsync");
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0)
    fail(path, "rename " + temporary + " to it");
  fsync_folder(std::filesystem::path(path).parent_path().string());
}

void fsync_folder(const std::string& folder) {
  const std::string name = folder.empty() ? "." : folder;
  Descriptor file{::open(name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (file.fd < 0) fail(name, "open the folder");
  // Some network file systems cannot fsync a folder and say EINVAL; nothing better exists there.
  if (::fsync(file.fd) != 0 && errno != EINVAL) fail(name, "fsync the folder");
}

std::string read_text_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(path, "open the file");
  std::ostringstream text;
  text << file.rdbuf();
  if (file.bad()) fail(path, "read");
  return text.str();
}

}  // namespace sala
