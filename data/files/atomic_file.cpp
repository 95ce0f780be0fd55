// The order of calls behind data/files/atomic_file.h.
#include "data/files/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "data/files/file_calls.h"

namespace sala {

std::string start_temporary(const std::string& path) {
  const std::string temporary = path + ".tmp";
  // What a killed writer left: a file of this name, nothing else.
  if (replaceable_file(temporary) != temporary) {
    throw std::runtime_error(temporary + ": expected nothing under this name, found a link");
  }
  if (::unlink(temporary.c_str()) != 0 && errno != ENOENT && errno != ENOTDIR) {
    throw FileError(temporary, "remove it", errno);
  }
  return temporary;
}

AtomicFile::AtomicFile(const std::string& path)
    : path_(replaceable_file(path)),
      temporary_(start_temporary(path_)),
      file_(temporary_, O_WRONLY | O_CREAT | O_EXCL) {}

AtomicFile::~AtomicFile() {
  if (!committed_) ::unlink(temporary_.c_str());
}

void AtomicFile::commit() {
  rename_durably(temporary_, path_);
  committed_ = true;
}

void write_file_atomically(const std::string& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

void rename_durably(const std::string& temporary, const std::string& path) {
  if (is_folder(temporary)) {
    fsync_folder(temporary);
  } else {
    Descriptor(temporary, O_RDONLY).sync();
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    throw FileError(path, "rename " + temporary + " to it", errno);
  }
  fsync_folder(std::filesystem::path(path).parent_path().string());
}

void fsync_folder(const std::string& folder) {
  const Descriptor file(folder.empty() ? "." : folder, O_RDONLY | O_DIRECTORY);
  try {
    file.sync();
  } catch (const FileError& error) {
    // Some network file systems cannot fsync a folder and say EINVAL; nothing better exists there.
    if (error.code() != EINVAL) throw;
  }
}

void make_folder_durably(const std::string& folder) {
  const std::filesystem::path path = (std::filesystem::absolute(folder) / "").parent_path();
  if (is_folder(path.string()) || !path.has_relative_path()) return;
  const std::string parent = path.parent_path().string();
  make_folder_durably(parent);
  if (::mkdir(path.c_str(), 0777) != 0) {
    const int code = errno;
    if (code != EEXIST || !is_folder(path.string())) throw FileError(folder, "make it", code);
  }
  fsync_folder(parent);
}

std::string read_text_file(const std::string& path) {
  const Descriptor file(path, O_RDONLY);
  return file.read(0, file.size());
}

}  // namespace sala
