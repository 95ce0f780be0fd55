// Folders that a run will write, tried before it has anything to write.
#pragma once

#include <cstdint>
#include <string>

namespace sala {

// Why FOLDER cannot be made, or written when it is there; empty when it can. Tried by making it, or
// a folder inside of it, which is gone again afterwards.
std::string why_not_writable(const std::string& folder);

// The same for the folder of an export by `maker` (trainer/folder/export_target.h).
std::string why_no_export(const std::string& folder, const std::string& maker);

// Whether `path` is FOLDER or lies in it, by their names alone.
bool lies_in(const std::string& path, const std::string& folder);

// Where FOLDER is or will be.
struct FileSystem {
  std::uint64_t id = 0;   // the same for all of its folders, as this machine sees them
  double free_bytes = 0;  // infinity where it does not tell
};
FileSystem file_system_of(const std::string& folder);

}  // namespace sala
