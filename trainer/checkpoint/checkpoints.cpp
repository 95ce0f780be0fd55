// Order of a save: rank files (fsync), frozen files (fsync), manifest (fsync, rename), folder
// renamed to its name, parent folder (fsync), and only then older checkpoints deleted. Whatever the
// moment of a crash, the newest folder with a manifest is whole.
#include "trainer/checkpoint/checkpoints.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <stdexcept>

#include "data/files/atomic_file.h"
#include "data/files/file_calls.h"
#include "trainer/checkpoint/folder.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/reader.h"
#include "trainer/checkpoint/writer.h"

namespace sala {
namespace {

namespace fs = std::filesystem;

// JSON for other ranks: a message may hold any bytes (a damaged file's own), JSON only UTF-8.
std::string dumped(const nlohmann::json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// Reads the file once more, whole: throws FileError when the system refuses.
void check_readable(const std::string& path) {
  constexpr int64_t kBlockBytes = 4 << 20;
  const Descriptor file(path, O_RDONLY);
  for (int64_t at = 0, size = file.size(); at < size; at += kBlockBytes) {
    file.read(at, kBlockBytes);
  }
}

// What is wrong with the shard, empty when nothing is. A disk that refuses (FileError) says nothing
// about what it holds, and a refusal may be gone at the second try.
std::string settled_shard_problem(const std::string& folder, const Shard& shard) {
  if (shard_problem(folder, shard).empty()) return "";
  const std::string path = folder + "/" + shard.file;
  if (path_exists(path)) check_readable(path);
  return shard_problem(folder, shard);
}

// The first thing wrong with this rank's share of the checkpoint's shards; empty when all is right.
std::string share_problem(const std::string& folder, int rank, int size) {
  const Manifest manifest = read_manifest(folder);
  for (const auto& [file, num_bytes] : manifest.file_bytes) {
    const std::string path = folder + "/" + file;
    if (!path_exists(path)) return path + ": No such file";
    const int64_t found = Descriptor(path, O_RDONLY).size();
    if (found != num_bytes) {
      return path + ": has " + std::to_string(found) + " bytes, the manifest says " +
             std::to_string(num_bytes) + ": truncated or replaced";
    }
  }
  int64_t index = 0;
  for (const SavedTensor& tensor : manifest.tensors) {
    for (const Shard& shard : tensor.shards) {
      if (index++ % size != rank) continue;
      const std::string problem = settled_shard_problem(folder, shard);
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
  const std::string folder = checkpoint_path(folder_, id), writing = writing_path(folder);
  const std::string frozen = folder_ + "/" + kFrozenFolder;
  const bool first = world_.rank() == 0;
  world_.together("saving a checkpoint", [&] {
    if (!first) return;
    make_folder_durably(frozen);
    remove_leftovers(folder_);
    fs::create_directory(writing);
  });
  CheckpointWriter writer(world_.rank(), world_.size(), writing, frozen,
                          std::string("../") + kFrozenFolder, sound_frozen_);
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
    const std::vector<std::string> texts = world_.gather(dumped(writer.report()));
    world_.together("saving a checkpoint", [&] {
      if (!first) return;
      std::vector<nlohmann::json> reports;
      for (const std::string& text : texts) reports.push_back(nlohmann::json::parse(text));
      Manifest manifest = writer.assemble(reports);
      manifest.id = id;
      manifest.recipe = recipe;
      write_file_atomically(writing + "/" + kManifestName, manifest_text(manifest));
      publish_checkpoint(writing, folder);
    });
  } catch (const std::exception&) {
    std::error_code ignored;
    if (first) fs::remove_all(writing, ignored);
    throw;
  }
  if (first) {
    try {
      retire_checkpoints(folder_, folder, keep_);
    } catch (const std::exception& error) {
      spdlog::warn("old checkpoints could not be deleted: {}", error.what());
    }
  }
  return folder;
}

std::optional<std::string> Checkpoints::newest_valid(std::vector<std::string>& skipped) {
  nlohmann::json listed{{"names", nlohmann::json::array()}};
  world_.together("looking for checkpoints", [&] {
    if (world_.rank() != 0) return;
    const CheckpointListing listing = list_checkpoints(folder_);
    for (const FoundCheckpoint& found : listing.complete) {
      listed["names"].push_back(fs::path(found.folder).filename().string());
    }
    listed["problems"] = listing.problems;
    listed["lost"] = listing.num_lost;
  });
  listed = nlohmann::json::parse(world_.broadcast(dumped(listed)));
  for (const auto& problem : listed["problems"]) skipped.push_back(problem);
  const auto& names = listed["names"];
  for (auto name = names.rbegin(); name != names.rend(); ++name) {
    const std::string folder = folder_ + "/" + name->get<std::string>();
    std::string problem;
    world_.together("looking at " + folder, [&] { problem = whole_or_why(folder); });
    const std::vector<std::string> all = world_.gather(problem);
    const auto bad = std::find_if(all.begin(), all.end(), [](const auto& s) { return !s.empty(); });
    if (bad == all.end()) return folder;
    skipped.push_back(*bad);
  }
  const int64_t num_lost = listed["lost"].get<int64_t>() + static_cast<int64_t>(names.size());
  if (num_lost == 0) return std::nullopt;
  // Not a new run: beginning anew would overwrite what may still be mended.
  throw SharedError(folder_ + ": none of " + std::to_string(num_lost) +
                    " checkpoint(s) can be used" +
                    (skipped.empty() ? " (all were set aside)" : " (" + skipped.back() + ")") +
                    "; restore one from a copy, or choose another run.folder to begin anew");
}

std::string Checkpoints::whole_or_why(const std::string& folder) const {
  try {
    return share_problem(folder, world_.rank(), world_.size());
  } catch (const FileError& error) {
    throw std::runtime_error(std::string(error.what()) +
                             ": whether this checkpoint is whole is not known; run again, or "
                             "delete its folder to continue from the one before");
  } catch (const std::exception& error) {
    return error.what();
  }
}

std::optional<std::string> Checkpoints::last_boundary(int64_t stage_index) const {
  std::optional<std::string> last;
  for (const FoundCheckpoint& found : list_checkpoints(folder_).complete) {
    const CheckpointId& id = found.manifest.id;
    if (id.boundary && id.stage_index <= stage_index) last = found.folder;
  }
  return last;
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
