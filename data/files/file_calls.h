// File calls that fail in one line that names the file, the cause and what to do. A call that was
// interrupted (EINTR) or is to be made again (EAGAIN) is made again, a bounded number of times.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace sala {

// The system refused: this says nothing about what the file holds, or whether it is there.
class FileError : public std::runtime_error {
 public:
  FileError(const std::string& path, const std::string& what, int code);
  FileError(const std::string& message, int code) : std::runtime_error(message), code_(code) {}
  int code() const { return code_; }  // errno

 private:
  int code_;
};

// An open file; closed on every way out.
class Descriptor {
 public:
  Descriptor() = default;
  // `flags` of open(2), O_CLOEXEC added. Only regular files (and, with O_DIRECTORY, folders): a
  // FIFO or device is refused, not waited for.
  Descriptor(const std::string& path, int flags);
  Descriptor(Descriptor&& other) noexcept;
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor();

  const std::string& path() const { return path_; }
  int number() const { return number_; }
  int64_t size() const;
  // Up to `num_bytes` from `offset`; fewer only at the end of the file.
  std::string read(int64_t offset, int64_t num_bytes) const;
  void write(std::string_view text) const;  // all of it, where the file stands
  void truncate(int64_t num_bytes) const;
  void sync() const;

 private:
  std::string path_;
  int number_ = -1;
};

// False only when it is certain that nothing is there. `path_exists` follows links.
bool path_exists(const std::string& path);
bool is_folder(const std::string& path);
// Names in a folder, sorted, without "." and "..".
std::vector<std::string> names_in_folder(const std::string& folder);

// Where a file that is to be written whole goes: `path`, or what the link of this name leads to.
// Throws unless a regular file or nothing is there: renaming over a device or FIFO would destroy
// it.
std::string replaceable_file(const std::string& path);

}  // namespace sala
