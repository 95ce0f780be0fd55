// Looking before reading.
#include "data/files/input_file.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <system_error>

#include "data/files/atomic_file.h"

namespace sala {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kMostJsonDepth = 100;

const char* kind_of(fs::file_type type) {
  switch (type) {
    case fs::file_type::directory:
      return "a folder";
    case fs::file_type::fifo:
      return "a FIFO";
    case fs::file_type::socket:
      return "a socket";
    case fs::file_type::block:
    case fs::file_type::character:
      return "a device";
    default:
      return "something else";
  }
}

bool starts_with_pointer(const std::string& path) {
  const std::string pointer = "version https://git-lfs.github.com/spec/";
  std::string start(pointer.size(), '\0');
  std::ifstream file(path, std::ios::binary);
  file.read(start.data(), static_cast<std::streamsize>(start.size()));
  return start == pointer;
}

// "line 3, column 7" of the byte at which the parser stopped, counted from 1.
std::string place_of(const std::string& text, size_t byte) {
  const size_t at = std::min(text.size(), byte > 0 ? byte - 1 : 0);
  const auto end = text.begin() + static_cast<std::ptrdiff_t>(at);
  const auto line = 1 + std::count(text.begin(), end, '\n');
  const size_t before = at == 0 ? text.npos : text.rfind('\n', at - 1);
  return "line " + std::to_string(line) + ", column " +
         std::to_string(before == text.npos ? at + 1 : at - before);
}

}  // namespace

void require_input_file(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) {
    throw std::runtime_error(path + ": cannot open the file: " + error.message());
  }
  if (!fs::is_regular_file(status)) {
    throw std::runtime_error(path + ": expected a file, found " + kind_of(status.type()));
  }
  if (starts_with_pointer(path)) {
    throw std::runtime_error(path +
                             ": this is a git-lfs pointer, the file itself was not downloaded: "
                             "run `git lfs pull` in its folder");
  }
}

json read_json_file(const std::string& path, int64_t most_bytes) {
  require_input_file(path);
  const auto size = static_cast<int64_t>(fs::file_size(path));
  if (size > most_bytes) {
    throw std::runtime_error(path + ": expected at most " + std::to_string(most_bytes) +
                             " bytes of JSON, got " + std::to_string(size));
  }
  const std::string text = read_text_file(path);
  const auto watch = [&](int depth, json::parse_event_t, json&) {
    if (depth <= kMostJsonDepth) return true;
    throw std::runtime_error(path + ": expected JSON, at most " + std::to_string(kMostJsonDepth) +
                             " values inside each other, found more");
  };
  try {
    return json::parse(text, watch);
  } catch (const json::parse_error& error) {
    throw std::runtime_error(path + ": not valid JSON at " + place_of(text, error.byte));
  } catch (const json::out_of_range&) {
    throw std::runtime_error(path + ": not valid JSON: holds a number that no double can");
  }
}

}  // namespace sala
