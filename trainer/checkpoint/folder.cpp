// Listing, naming and deleting behind trainer/checkpoint/folder.h.
#include "trainer/checkpoint/folder.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <regex>
#include <set>
#include <tuple>

#include "data/files/atomic_file.h"
#include "data/files/file_calls.h"

namespace sala {
namespace {

namespace fs = std::filesystem;

constexpr const char* kWriting = ".writing";
constexpr const char* kPassedOver = "manifest.json.passed_over";

// By name alone; a name that we never give is somebody else's folder.
bool named_as_checkpoint(const std::string& name) {
  static const std::regex pattern("[0-9]{2,}-[A-Za-z0-9_-]{1,300}-[0-9]{8,}");
  return name.size() < 400 && std::regex_match(name, pattern);
}

std::vector<std::string> checkpoint_folders(const std::string& checkpoints) {
  std::vector<std::string> folders;
  if (!path_exists(checkpoints)) return folders;
  for (const std::string& name : names_in_folder(checkpoints)) {
    const std::string folder = checkpoints + "/" + name;
    if (name != kFrozenFolder && is_folder(folder)) folders.push_back(folder);
  }
  return folders;
}

// Manifest first: what is left of a deletion that is cut short is no checkpoint.
void remove_checkpoint(const std::string& folder) {
  if (fs::remove(folder + "/" + kManifestName)) fsync_folder(folder);
  fs::remove_all(folder);
}

// Only when every remaining manifest can be read is it known which frozen files are needed.
void remove_unused_frozen(const std::string& checkpoints,
                          const std::vector<FoundCheckpoint>& kept) {
  std::set<std::string> used;
  for (const FoundCheckpoint& checkpoint : kept) {
    for (const SavedTensor& tensor : checkpoint.manifest.tensors) {
      for (const Shard& shard : tensor.shards) used.insert(fs::path(shard.file).filename());
    }
  }
  const std::string frozen = checkpoints + "/" + kFrozenFolder;
  for (const std::string& name : names_in_folder(frozen)) {
    if (!used.contains(name)) fs::remove(frozen + "/" + name);
  }
}

}  // namespace

std::string checkpoint_path(const std::string& checkpoints, const CheckpointId& id) {
  std::string stage = id.stage;
  for (char& c : stage) {
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '_' && c != '-') c = '_';
  }
  char index[32], step[32];
  std::snprintf(index, sizeof index, "%02lld-", static_cast<long long>(id.stage_index));
  std::snprintf(step, sizeof step, "-%08lld", static_cast<long long>(id.step));
  return checkpoints + "/" + index + stage + step;
}

std::string writing_path(const std::string& checkpoint) { return checkpoint + kWriting; }

CheckpointListing list_checkpoints(const std::string& checkpoints) {
  CheckpointListing listing;
  for (const std::string& folder : checkpoint_folders(checkpoints)) {
    const bool ours = named_as_checkpoint(fs::path(folder).filename().string());
    if (path_exists(folder + "/" + kPassedOver)) {
      listing.num_lost += ours;
      continue;
    }
    try {
      if (folder.ends_with(kWriting))
        throw std::runtime_error(folder + ": its save was interrupted");
      listing.complete.push_back({folder, read_manifest(folder)});
    } catch (const FileError& error) {
      if (error.code() != ENOENT) throw;  // deleted while we look: no checkpoint
    } catch (const std::exception& error) {
      listing.problems.push_back(error.what());
      listing.num_lost += ours;
    }
  }
  const auto order = [](const FoundCheckpoint& f) {
    return std::tuple(f.manifest.id.stage_index, f.manifest.id.step, f.folder);
  };
  std::sort(listing.complete.begin(), listing.complete.end(),
            [&](const auto& a, const auto& b) { return order(a) < order(b); });
  std::sort(listing.problems.begin(), listing.problems.end());
  return listing;
}

std::optional<Manifest> newest_manifest(const std::string& checkpoints) {
  if (!is_folder(checkpoints)) return std::nullopt;
  std::vector<std::string> folders = checkpoint_folders(checkpoints);
  std::sort(folders.rbegin(), folders.rend());
  for (const std::string& folder : folders) {
    if (folder.ends_with(kWriting)) continue;
    try {
      return read_manifest(folder);
    } catch (const FileError& error) {
      if (error.code() != ENOENT) throw;
    } catch (const std::exception&) {  // newest_valid says what is wrong with it
    }
  }
  return std::nullopt;
}

void remove_leftovers(const std::string& checkpoints) {
  for (const std::string& folder : checkpoint_folders(checkpoints)) {
    const std::vector<std::string> files = names_in_folder(folder);
    const bool only_ours = std::all_of(files.begin(), files.end(), [](const std::string& name) {
      return name.starts_with("rank-") || name.ends_with(".tmp");
    });
    if (only_ours || folder.ends_with(kWriting)) fs::remove_all(folder);
  }
}

void publish_checkpoint(const std::string& writing, const std::string& folder) {
  if (path_exists(folder)) remove_checkpoint(folder);
  rename_durably(writing, folder);
}

void retire_checkpoints(const std::string& checkpoints, const std::string& saved, int64_t keep) {
  CheckpointListing listing = list_checkpoints(checkpoints);
  std::vector<FoundCheckpoint>& found = listing.complete;
  const auto self =
      std::find_if(found.begin(), found.end(), [&](const auto& f) { return f.folder == saved; });
  if (self == found.end()) return;
  bool all_known = listing.problems.empty();
  for (auto later = self + 1; later != found.end(); ++later) {
    fs::rename(later->folder + "/" + kManifestName, later->folder + "/" + kPassedOver);
    spdlog::warn("{} was passed over and is now set aside; delete it when you no longer need it",
                 later->folder);
    all_known = false;
  }
  found.erase(self + 1, found.end());
  std::vector<FoundCheckpoint> kept;
  for (auto f = found.rbegin(); f != found.rend(); ++f) {
    if (f->manifest.id.boundary || keep-- > 0) {
      kept.push_back(*f);
    } else {
      remove_checkpoint(f->folder);
    }
  }
  if (all_known) remove_unused_frozen(checkpoints, kept);
}

}  // namespace sala
