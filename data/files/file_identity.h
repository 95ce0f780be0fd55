// Whether a file is still the one that was looked at before, without reading it.
#pragma once

#include <cstdint>
#include <string>

namespace sala {

// Size, time of the last change and inode: writing in place changes the second, replacing the file
// changes the third.
struct FileIdentity {
  std::int64_t num_bytes = 0;
  std::int64_t changed_ns = 0;  // mtime, nanoseconds since 1970
  std::int64_t inode = 0;
  auto operator<=>(const FileIdentity&) const = default;
};

// Of the regular file at `path`; anything else, or one that cannot be looked at:
// std::runtime_error with one line (FileError where the system refuses).
FileIdentity file_identity(const std::string& path);

// Of an open file; `path` is for messages.
FileIdentity file_identity(int descriptor, const std::string& path);

}  // namespace sala
