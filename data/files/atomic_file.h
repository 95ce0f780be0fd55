// Files that are either whole or not there: write to a temporary name, fsync, rename, fsync the
// folder. After a crash a reader sees the old file or the new one, never a part.
#pragma once

#include <string>
#include <string_view>

#include "data/files/file_calls.h"

namespace sala {

// A file in the making. Only a regular file is ever replaced: what a link of this name leads to,
// never a device. Errors (no folder, full disk, no permission): std::runtime_error with one line
// that names the file and the cause; the old file stays.
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path);
  ~AtomicFile();  // without commit(): what was written is removed
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::string_view bytes) const { file_.write(bytes); }
  void commit();

 private:
  std::string path_, temporary_;
  Descriptor file_;
  bool committed_ = false;
};

// Replaces `path` by `text`, as AtomicFile does.
void write_file_atomically(const std::string& path, std::string_view text);

// PATH.tmp, the name under which a new `path` is written, free for use: what a killed writer left
// there is removed, anything but a file is refused.
std::string start_temporary(const std::string& path);

// fsync of a finished file or folder, then rename to `path`, then fsync of the folder.
void rename_durably(const std::string& temporary, const std::string& path);

// Makes `folder` and those above it that are not there, each durable before the next.
void make_folder_durably(const std::string& folder);

// Makes renames and removals inside `folder` durable.
void fsync_folder(const std::string& folder);

// Whole file as text. Missing or unreadable: std::runtime_error that names it.
std::string read_text_file(const std::string& path);

}  // namespace sala
