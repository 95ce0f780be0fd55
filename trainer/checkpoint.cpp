// Order of a save: rank files (fsync), frozen files (fsync), manifest (fsync, rename), folder
// renamed to its name, parent folder (fsync), and only then older checkpoints deleted. Whatever the
// moment of a crash, the newest folder with a manifest is whole.
#include "trainer/checkpoint.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <filesystem>
#include <stdexcept>
#include <tuple>

#include "data/atomic_file.h"
#include "trainer/checkpoint_manifest.h"
#include "trainer/checkpoint_reader.h"
#include "trainer/checkpoint_writer.h"

namespace sala {
namespace {

namespace fs = std::filesystem;

constexpr const char* kWriting = ".writing";
constexpr const char* kPassedOver = "manifest.json.passed_over";
constexpr const char* kFrozen = "frozen";

std::string folder_name(const CheckpointId& id) {
  std::string stage = id.stage;
  for (char& c : stage) {
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '_' && c != '-') c = '_';
  }
  char index[32], step[32];
  std::snprintf(index, sizeof index, "%02lld-", static_cast<long long>(id.stage_index));
  std::snprintf(step, sizeof step, "-%08lld", static_cast<long long>(id.step));
  return index + stage + step;
}

struct Found {
  std::string folder;
  Manifest manifest;

  std::tuple<int64_t, int64_t, std::string> order() const {
    return {manifest.id.stage_index, manifest.id.step, folder};
  }
};

// Oldest first. Folders that are no checkpoint come back in `problems`, one line each.
std::vector<Found> list_complete(const std::string& checkpoints,
                                 std::vector<std::string>& problems) {
  std::vector<Found> found;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(checkpoints, none)) {
    if (!entry.is_directory() || entry.path().filename() == kFrozen) continue;
    const std::string folder = entry.path().string();
    if (fs::exists(entry.path() / kPassedOver)) continue;
    try {
      if (folder.ends_with(kWriting))
        throw std::runtime_error(folder + ": its save was interrupted");
      found.push_back({folder, read_manifest(folder)});
    } catch (const std::exception& error) {
      problems.push_back(error.what());
    }
  }
  std::sort(found.begin(), found.end(),
            [](const Found& a, const Found& b) { return a.order() < b.order(); });
  std::sort(problems.begin(), problems.end());
  return found;
}

// Manifest first: what is left of a deletion that is cut short is no checkpoint.
void remove_checkpoint(const std::string& folder) {
  if (fs::remove(folder + "/" + kManifestName)) fsync_folder(folder);
  fs::remove_all(folder);
}

// What interrupted saves and deletions left: folders with nothing but our rank files in them.
void remove_leftovers(const std::string& checkpoints) {
  for (const auto& entry : fs::directory_iterator(checkpoints)) {
    if (!entry.is_directory() || entry.path().filename() == kFrozen) continue;
    const bool writing = entry.path().string().ends_with(kWriting);
    const auto ours = [](const fs::directory_entry& file) {
      const std::string name = file.path().filename().string();
      return name.starts_with("rank-") || name.ends_with(".tmp");
    };
    if (writing || std::all_of(fs::directory_iterator(entry), fs::directory_iterator(), ours)) {
      fs::remove_all(entry.path());
    }
  }
}

// Only when every remaining manifest can be read is it known which frozen files are needed.
void remove_unused_frozen(const std::string& checkpoints, const std::vector<Found>& kept) {
  std::set<std::string> used;
  for (const Found& checkpoint : kept) {
    for (const SavedTensor& tensor : checkpoint.manifest.tensors) {
      for (const Shard& shard : tensor.shards) used.insert(fs::path(shard.file).filename());
    }
  }
  for (const auto& entry : fs::directory_iterator(checkpoints + "/" + kFrozen)) {
    if (!used.contains(entry.path().filename())) fs::remove(entry.path());
  }
}

// After `saved` is complete. Keeps every boundary and the newest `keep` others.
void retire(const std::string& checkpoints, const std::string& saved, int64_t keep) {
  std::vector<std::string> problems;
  std::vector<Found> found = list_complete(checkpoints, problems);
  const auto self =
      std::find_if(found.begin(), found.end(), [&](const Found& f) { return f.folder == saved; });
  if (self == found.end()) return;
  bool all_known = problems.empty();
  for (auto later = self + 1; later != found.end(); ++later) {
    fs::rename(later->folder + "/" + kManifestName, later->folder + "/" + kPassedOver);
    spdlog::warn("{} was passed over and is now set aside; delete it when you no longer need it",
                 later->folder);
    all_known = false;
  }
  found.erase(self + 1, found.end());
  std::vector<Found> kept;
  for (auto f = found.rbegin(); f != found.rend(); ++f) {
    if (f->manifest.id.boundary || keep-- > 0) {
      kept.push_back(*f);
    } else {
      remove_checkpoint(f->folder);
    }
  }
  if (all_known) remove_unused_frozen(checkpoints, kept);
}

// Gives the finished folder its name; an older save of the same step goes.
void publish(const std::string& writing, const std::string& folder) {
  fsync_folder(writing);
  if (fs::exists(folder)) remove_checkpoint(folder);
  rename_durably(writing, folder);
}

// The first thing wrong with this rank's share of the checkpoint's shards; empty when all is right.
std::string share_problem(const std::string& folder, int rank, int size) {
  const Manifest manifest = read_manifest(folder);
  for (const auto& [file, num_bytes] : manifest.file_bytes) {
    const std::string path = folder + "/" + file;
    std::error_code missing;
    const auto found = static_cast<int64_t>(fs::file_size(path, missing));
    if (missing) return path + ": " + missing.message();
    if (found != num_bytes) {
      return path + ": has " + std::to_string(found) + " bytes, the manifest says " +
             std::to_string(num_bytes) + ": truncated or replaced";
    }
  }
  int64_t index = 0;
  for (const SavedTensor& tensor : manifest.tensors) {
    for (const Shard& shard : tensor.shards) {
      if (index++ % size != rank) continue;
      const std::string problem = shard_problem(folder, shard);
      if (!problem.empty()) return problem;
    }
  }
  return "";
}

}  // namespace

Checkpoints::Checkpoints(std::string run_folder, World& world, int64_t keep)
    : folder_(std::move(run_folder) + "/checkpoints"), world_(world), keep_(keep) {
  TORCH_CHECK(keep >= 1, "checkpoints: expected to keep at least 1, got ", keep);
}

std::string Checkpoints::save(const CheckpointId& id, const nlohmann::json& recipe,
                              const std::function<void(StateWriter&)>& fill) {
  const std::string folder = folder_ + "/" + folder_name(id), writing = folder + kWriting;
  const std::string frozen = folder_ + "/" + kFrozen;
  const bool first = world_.rank() == 0;
  world_.together("saving a checkpoint", [&] {
    if (!first) return;
    fs::create_directories(frozen);
    remove_leftovers(folder_);
    fs::create_directory(writing);
  });
  CheckpointWriter writer(world_.rank(), world_.size(), writing, frozen,
                          std::string("../") + kFrozen, sound_frozen_);
  try {
    world_.together("saving a checkpoint", [&] {
      try {
        fill(writer);
      } catch (const std::exception&) {
        writer.abandon();  // before rank 0, told of the error, removes the folder
        throw;
      }
      writer.finish();
    });
    const std::vector<std::string> texts = world_.gather(writer.report().dump());
    world_.together("saving a checkpoint", [&] {
      if (!first) return;
      std::vector<nlohmann::json> reports;
      for (const std::string& text : texts) reports.push_back(nlohmann::json::parse(text));
      Manifest manifest = writer.assemble(reports);
      manifest.id = id;
      manifest.recipe = recipe;
      write_file_atomically(writing + "/" + kManifestName, manifest_text(manifest));
      publish(writing, folder);
    });
  } catch (const std::exception&) {
    std::error_code ignored;
    if (first) fs::remove_all(writing, ignored);
    throw;
  }
  if (first) {
    try {
      retire(folder_, folder, keep_);
    } catch (const std::exception& error) {
      spdlog::warn("old checkpoints could not be deleted: {}", error.what());
    }
  }
  return folder;
}

std::optional<std::string> Checkpoints::newest_valid(std::vector<std::string>& skipped) {
  nlohmann::json listed{{"folders", nlohmann::json::array()},
                        {"problems", nlohmann::json::array()}};
  world_.together("looking for checkpoints", [&] {
    if (world_.rank() != 0) return;
    std::vector<std::string> problems;
    for (const Found& found : list_complete(folder_, problems)) {
      listed["folders"].push_back(found.folder);
    }
    listed["problems"] = problems;
  });
  listed = nlohmann::json::parse(world_.broadcast(listed.dump()));
  for (const auto& problem : listed["problems"]) skipped.push_back(problem);
  for (auto folder = listed["folders"].rbegin(); folder != listed["folders"].rend(); ++folder) {
    std::string problem;
    try {
      problem = share_problem(*folder, world_.rank(), world_.size());
    } catch (const std::exception& error) {
      problem = error.what();
    }
    const std::vector<std::string> all = world_.gather(problem);
    const auto bad = std::find_if(all.begin(), all.end(), [](const auto& s) { return !s.empty(); });
    if (bad == all.end()) return folder->get<std::string>();
    skipped.push_back(*bad);
  }
  return std::nullopt;
}

CheckpointId Checkpoints::id(const std::string& checkpoint_folder) {
  return read_manifest(checkpoint_folder).id;
}

nlohmann::json Checkpoints::recipe(const std::string& checkpoint_folder) {
  return read_manifest(checkpoint_folder).recipe;
}

std::unique_ptr<StateReader> Checkpoints::open(const std::string& checkpoint_folder) {
  return make_checkpoint_reader(checkpoint_folder);
}

}  // namespace sala
