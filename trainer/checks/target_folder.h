// Folders that a run will write, tried before it has anything to write.
#pragma once

#include <string>

namespace sala {

// Why FOLDER cannot be made, or written when it is there; empty when it can. Tried by making it, or
// a folder inside of it, which is gone again afterwards.
std::string why_not_writable(const std::string& folder);

// The same for the folder of an export by `maker` (trainer/folder/export_target.h).
std::string why_no_export(const std::string& folder, const std::string& maker);

// Whether `path` is FOLDER or lies in it, by their names alone.
bool lies_in(const std::string& path, const std::string& folder);

// Free bytes where FOLDER is or will be; infinity where the file system does not tell.
double free_bytes(const std::string& folder);

}  // namespace sala
