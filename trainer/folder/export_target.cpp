// Claiming a folder, and knowing our own again.
#include "trainer/folder/export_target.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>
#include <stdexcept>
#include <system_error>

#include "data/files/atomic_file.h"
#include "data/files/sha256.h"
#include "trainer/folder/hashes.h"

namespace sala {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kMarker = "sala_export.json";
constexpr const char* kConfig = "config.json";

[[noreturn]] void fail(const std::string& folder, const std::string& what, int code) {
  throw std::runtime_error(folder + ": cannot " + what + ": " + std::strerror(code) +
                           (code == ENOSPC || code == EDQUOT
                                ? "; free space and run again"
                                : "; choose a folder for the export that can be written"));
}

bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == name.npos;
}

// What is in the folder; a file system may have made lost+found at its root.
std::set<std::string> names_in(const std::string& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename());
  names.erase("lost+found");
  return names;
}

struct Marker {
  std::string maker;
  std::vector<std::string> files;  // config.json and the marker itself are not among them
};

// A marker that was torn as it was written has no files beside it: nobody's, and no files.
Marker read_marker(const std::string& folder) {
  const std::string path = folder + "/" + kMarker;
  std::error_code error;
  if (!fs::is_regular_file(fs::symlink_status(path, error))) return {};
  const json content = json::parse(read_text_file(path), nullptr, false);
  if (!content.is_object() || !content.contains("maker") || !content["maker"].is_string() ||
      !content.contains("files") || !content["files"].is_array()) {
    return {};
  }
  Marker marker{content["maker"].get<std::string>(), {}};
  for (const json& file : content["files"]) {
    if (file.is_string() && is_plain_name(file.get<std::string>())) {
      marker.files.push_back(file.get<std::string>());
    }
  }
  return marker;
}

// Names that the marker does not know.
std::vector<std::string> strangers(std::set<std::string> names, const Marker& marker) {
  std::vector<std::string> ours = marker.files;
  ours.insert(ours.end(), {kConfig, kMarker});
  for (const std::string& name : ours) {
    names.erase(name);
    names.erase(name + ".tmp");
  }
  return {names.begin(), names.end()};
}

// Whether a finished export is still what was written.
bool is_untouched(const std::string& folder, const Marker& marker) {
  std::vector<std::string> names = marker.files;
  names.emplace_back(kConfig);
  return std::all_of(names.begin(), names.end(), [&](const std::string& name) {
    const std::string path = folder + "/" + name;
    if (name == kHashFile) return true;
    return fs::is_regular_file(path) && sha256_of_file(path) == stated_hash(folder, name).hex;
  });
}

void remove_files(const std::string& folder, const std::vector<std::string>& files) {
  std::vector<std::string> names{kConfig};  // from now on nothing loads it
  names.insert(names.end(), files.begin(), files.end());
  for (const std::string& name : names) {
    for (const char* end : {"", ".tmp"}) {
      const std::string path = folder + "/" + name + end;
      if (::unlink(path.c_str()) != 0 && errno != ENOENT) fail(path, "remove it", errno);
    }
  }
}

}  // namespace

std::string export_obstacle(const std::string& folder, const std::string& maker) {
  std::error_code error;
  const fs::file_status status = fs::status(folder, error);
  if (status.type() == fs::file_type::not_found) {
    const bool link = fs::is_symlink(fs::symlink_status(folder, error));
    return link ? "is a link to a folder that is not there" : "";
  }
  if (!fs::is_directory(status)) return "is no folder";
  const std::string advice = ": choose a new or empty folder, or remove it";
  const std::set<std::string> names = names_in(folder);
  if (names.empty()) return "";
  if (names.count(kMarker) == 0) return "has content" + advice;
  const Marker marker = read_marker(folder);
  if (!strangers(names, marker).empty()) return "has content that no export wrote" + advice;
  const bool own = marker.maker == maker || names.size() == 1;
  if (has_export(folder)) {
    if (!own) return "holds a finished export of another run or checkpoint" + advice;
    if (!is_untouched(folder, marker)) return "holds an export that was edited" + advice;
    return "";
  }
  return own ? "" : "holds an unfinished export of another run or checkpoint" + advice;
}

bool has_export(const std::string& folder) {
  std::error_code error;
  return fs::exists(folder + "/" + kMarker, error) && fs::exists(folder + "/" + kConfig, error);
}

ExportTarget::ExportTarget(const std::string& folder, const std::string& maker,
                           const std::vector<std::string>& files)
    : maker_(maker), files_(files) {
  const std::string obstacle = export_obstacle(folder, maker);
  if (!obstacle.empty()) throw std::runtime_error(folder + ": " + obstacle);
  make_folder(folder);
  try {
    folder_ = fs::canonical(folder).string();
    lock();
    remove_files(folder_, read_marker(folder_).files);
    const std::string text =
        json{{"made_by", "sala-train"}, {"maker", maker_}, {"files", files_}}.dump(2) + "\n";
    const bool written =
        ::ftruncate(marker_, 0) == 0 &&
        ::pwrite(marker_, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()) &&
        ::fsync(marker_) == 0;
    if (!written) fail(folder_ + "/" + kMarker, "write", errno);
    fsync_folder(folder_);
  } catch (const std::exception&) {
    if (marker_ >= 0) ::close(marker_);
    remove_made_folders();
    throw;
  }
}

// Those that are not empty stay.
void ExportTarget::remove_made_folders() {
  for (; !made_folders_.empty(); made_folders_.pop_back()) ::rmdir(made_folders_.back().c_str());
}

void ExportTarget::make_folder(const std::string& folder) {
  fs::path missing = (fs::absolute(folder) / "").parent_path();
  std::vector<fs::path> parts;
  while (!fs::exists(missing)) {
    parts.push_back(missing);
    missing = missing.parent_path();
  }
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    if (::mkdir(part->c_str(), 0777) == 0) {
      made_folders_.push_back(part->string());
    } else if (errno != EEXIST) {
      const int code = errno;
      remove_made_folders();
      fail(folder, "make it", code);
    }
  }
}

// Two that export to one folder at a time would each remove the other's files. Where the file
// system has no locks, nothing better exists.
void ExportTarget::lock() {
  const std::string path = folder_ + "/" + kMarker;
  marker_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (marker_ < 0) fail(path, "open it", errno);
  if (::flock(marker_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    throw std::runtime_error(folder_ + ": another process exports to it: choose another folder");
  }
}

void ExportTarget::finish(const json& config) {
  const std::string text = config.dump(2) + "\n";
  std::vector<std::string> hashed;
  for (const std::string& file : files_) {
    if (file != kHashFile) hashed.push_back(file);
  }
  Sha256 hash;
  hash.update(text.data(), text.size());
  write_hashes(folder_, hashed, {{kConfig, hash.hex()}});
  write_file_atomically(folder_ + "/" + kConfig, text);
  finished_ = true;
}

ExportTarget::~ExportTarget() {
  if (!finished_) {
    std::vector<std::string> names = files_;
    names.insert(names.end(), {kConfig, kMarker});
    for (const std::string& name : names) {
      ::unlink((folder_ + "/" + name).c_str());
      ::unlink((folder_ + "/" + name + ".tmp").c_str());
    }
    remove_made_folders();
  }
  ::close(marker_);
}

}  // namespace sala
