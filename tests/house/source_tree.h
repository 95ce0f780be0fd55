// The checkout as the house tests read it: files by folder, lines of a file, include lines.
#pragma once

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace sala::house {

namespace fs = std::filesystem;

inline const fs::path kRoot = SALA_SOURCE_DIR;

inline std::vector<std::string> lines_of(const fs::path& path) {
  std::ifstream in(path);
  if (!in) throw std::runtime_error("cannot read " + path.string());
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// Paths relative to the root, sorted, of the files below `folder` with one of the extensions.
inline std::vector<std::string> files_in(const std::string& folder,
                                         const std::set<std::string>& extensions) {
  std::vector<std::string> found;
  if (!fs::exists(kRoot / folder)) return found;
  for (const auto& entry : fs::recursive_directory_iterator(kRoot / folder)) {
    if (entry.is_regular_file() && extensions.count(entry.path().extension().string())) {
      found.push_back(fs::relative(entry.path(), kRoot).string());
    }
  }
  std::sort(found.begin(), found.end());
  return found;
}

inline std::vector<std::string> sources_in(const std::string& folder) {
  return files_in(folder, {".h", ".cuh", ".cpp", ".cu"});
}

struct Include {
  std::string name;
  bool quoted;  // "name" is ours, <name> is somebody else's
};

inline std::vector<Include> includes_of(const std::string& file) {
  std::vector<Include> includes;
  for (const std::string& line : lines_of(kRoot / file)) {
    const auto hash = line.find_first_not_of(" \t");
    if (hash == std::string::npos || line.compare(hash, 1, "#") != 0) continue;
    const auto word = line.find("include", hash);
    const auto open = line.find_first_of("\"<", word == std::string::npos ? line.size() : word);
    if (word == std::string::npos || open == std::string::npos) continue;
    const bool quoted = line[open] == '"';
    const auto close = line.find(quoted ? '"' : '>', open + 1);
    if (close == std::string::npos) continue;
    includes.push_back({line.substr(open + 1, close - open - 1), quoted});
  }
  return includes;
}

}  // namespace sala::house
