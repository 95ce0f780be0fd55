// stat behind data/files/file_identity.h.
#include "data/files/file_identity.h"

#include <sys/stat.h>

#include <cerrno>
#include <stdexcept>

#include "data/files/file_calls.h"
#include "data/files/system_advice.h"

namespace sala {
namespace {

FileIdentity identity(int status, const struct stat& found, const std::string& path) {
  if (status != 0) {
    const int code = errno;
    if (code != ENOENT && code != ENOTDIR) throw FileError(path, "look at the file", code);
    throw std::runtime_error(path + ": no such file" + system_advice(code));
  }
  if (!S_ISREG(found.st_mode)) {
    throw std::runtime_error(path + ": expected a file, found a " +
                             (S_ISDIR(found.st_mode) ? "folder" : "device, pipe or socket"));
  }
  return {found.st_size, found.st_mtim.tv_sec * std::int64_t{1'000'000'000} + found.st_mtim.tv_nsec,
          static_cast<std::int64_t>(found.st_ino)};
}

}  // namespace

FileIdentity file_identity(const std::string& path) {
  struct stat found {};
  const int status = ::stat(path.c_str(), &found);
  return identity(status, found, path);
}

FileIdentity file_identity(int descriptor, const std::string& path) {
  struct stat found {};
  const int status = ::fstat(descriptor, &found);
  return identity(status, found, path);
}

}  // namespace sala
