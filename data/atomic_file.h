// Files that are either whole or not there: write to a temporary name, fsync, rename, fsync the
// folder. After a crash a reader sees the old file or the new one, never a part.
#pragma once

#include <string>
#include <string_view>

namespace sala {

// Replaces `path` by `text`. Errors (no folder, full disk, no permission): std::runtime_error with
// one line that names the file and the cause; the old file stays.
void write_file_atomically(const std::string& path, std::string_view text);

// fsync of a finished file, then rename to `path`, then fsync of the folder.
void rename_durably(const std::string& temporary, const std::string& path);

// Makes renames and removals inside `folder` durable.
void fsync_folder(const std::string& folder);

// Whole file as text. Missing or unreadable: std::runtime_error that names it.
std::string read_text_file(const std::string& path);

}  // namespace sala
