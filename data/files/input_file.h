// Files that other people wrote: read whole only when they are what they should be. Errors:
// std::runtime_error, one line that names the file, what was expected and what came.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace sala {

// Throws unless a regular file is there (a FIFO would be waited for, a device may never end) that
// is not a git-lfs pointer, the small text that stands for a large file not downloaded yet.
void require_input_file(const std::string& path);

// A JSON file of at most `most_bytes`, nested a hundred deep at most: deeper values overflow the
// stack of whoever copies or prints them.
nlohmann::json read_json_file(const std::string& path, int64_t most_bytes);

}  // namespace sala
