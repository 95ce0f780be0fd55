// Order of a save: the snapshot; rank files (fsync) and frozen files (fsync) by each rank's thread,
// which then waits for what the checkpoint completes after; then, by rank 0, manifest (fsync,
// rename), folder renamed to its name, parent folder (fsync), and only then older checkpoints
// deleted. Whatever the moment of a crash, the newest folder with a manifest is whole.
#include "trainer/checkpoint/checkpoints.h"

#include <c10/core/DeviceGuard.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <future>
#include <set>
#include <stdexcept>
#include <thread>
#include <utility>

#include "data/files/atomic_file.h"
#include "data/files/file_calls.h"
#include "trainer/checkpoint/folder.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/reader.h"
#include "trainer/checkpoint/snapshot.h"
#include "trainer/checkpoint/writer.h"
#include "trainer/ranks/device_info.h"

namespace sala {
namespace {

namespace fs = std::filesystem;

using Clock = std::chrono::steady_clock;

// Before each further try of a save that must not fail.
constexpr std::chrono::seconds kPauses[] = {std::chrono::seconds(1), std::chrono::seconds(5)};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// JSON for other ranks: a message may hold any bytes (a damaged file's own), JSON only UTF-8.
std::string dumped(const nlohmann::json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

struct Checkpoints::Impl {
  // What a rank's thread leaves behind.
  struct Written {
    nlohmann::json report;
    std::exception_ptr failure;  // why not all was written
  };

  // A checkpoint between its snapshot and its commit. Destroyed in between: its thread is told to
  // end, and waited for.
  struct InFlight {
    InFlight(const World& world, Staging& staging, const SideStream& side)
        : snapshot(world.rank(), world.size(), world.device(), staging, side) {}
    ~InFlight() { given_up = true; }

    CheckpointId id;
    nlohmann::json recipe;
    std::string folder, writing;  // its name, and the one until the commit
    Snapshot snapshot;
    WriterPlace place;
    double stall_seconds = 0;  // of this rank, so far
    size_t num_tries_left = 0;
    std::atomic<bool> given_up = false;
    std::future<Written> written;  // the last member: its end waits for the thread
  };

  Impl(std::string run_folder, World& world, int64_t keep)
      : folder(std::move(run_folder) + "/checkpoints"),
        world(world),
        keep(keep),
        staging(world.device().is_cuda()),
        side(world.device()) {}

  void start(const CheckpointId& id, const nlohmann::json& recipe,
             const std::function<void(StateWriter&)>& fill, bool persists);
  void make_folder();
  void begin_writing();
  std::optional<SavedCheckpoint> commit();
  SavedCheckpoint complete();
  void write_together(const std::function<void()>& work);
  bool may_try_again(const WriteFailed& failure);
  std::string text_of_manifest(const std::vector<std::string>& reports) const;
  void give_up();
  std::string whole_or_why(const std::string& checkpoint);
  void retire(const std::string& saved);

  std::string folder;
  World& world;
  int64_t keep;
  Staging staging;
  SideStream side;                     // of the snapshots' copies
  std::set<std::string> sound_frozen;  // files that this process wrote or has checked
  std::unique_ptr<InFlight> in_flight;
  std::optional<ReadCheckpoint> found;             // by newest_valid, until it is opened
  std::future<std::vector<at::Tensor>> preparing;  // more memory for staging
  std::future<void> retiring;  // rank 0 deletes old checkpoints: minutes for large ones
};

void Checkpoints::Impl::start(const CheckpointId& id, const nlohmann::json& recipe,
                              const std::function<void(StateWriter&)>& fill, bool persists) {
  const auto started = Clock::now();
  if (preparing.valid()) staging.take(preparing.get());
  if (retiring.valid()) retiring.wait();
  found.reset();
  in_flight = std::make_unique<InFlight>(world, staging, side);
  InFlight& save = *in_flight;
  save.id = id;
  save.recipe = recipe;
  save.folder = checkpoint_path(folder, id);
  save.writing = writing_path(save.folder);
  const std::string frozen = folder + "/" + kFrozenFolder;
  save.place = {world.rank(), save.writing, frozen, std::string("../") + kFrozenFolder};
  save.num_tries_left = persists ? std::size(kPauses) : 0;
  try {
    make_folder();
    world.together("saving a checkpoint", [&] {
      fill(save.snapshot);
      if (id.boundary) save.snapshot.finish_copies();  // what comes next may change anything
      save.snapshot.check();
    });
  } catch (const std::exception&) {
    give_up();
    throw;
  }
  begin_writing();
  save.stall_seconds = seconds_since(started);
}

void Checkpoints::Impl::make_folder() {
  while (true) {
    try {
      write_together([&] {
        if (world.rank() != 0) return;
        make_folder_durably(in_flight->place.frozen_folder);
        remove_leftovers(folder);
        fs::create_directory(in_flight->writing);
      });
      return;
    } catch (const WriteFailed& failure) {
      if (!may_try_again(failure)) throw;
    }
  }
}

void Checkpoints::Impl::begin_writing() {
  InFlight& save = *in_flight;
  save.written = std::async(std::launch::async, [this, &save, begun = Clock::now()] {
    const c10::DeviceGuard guard(world.device());  // else waiting makes a context on GPU 0
    save.snapshot.finish_copies();
    Written written;
    try {
      written.report = write_snapshot(save.snapshot, save.place, sound_frozen, save.given_up);
    } catch (const std::exception&) {
      written.failure = std::current_exception();
      return written;
    }
    for (const auto& work : save.snapshot.awaited()) work.get();
    written.report["seconds"] = seconds_since(begun);
    return written;
  });
}

// What a save that failed on all ranks leaves is removed, when no rank writes any more.
void Checkpoints::Impl::give_up() {
  const std::string writing = in_flight->writing;
  in_flight.reset();
  std::error_code ignored;
  if (world.rank() == 0) fs::remove_all(writing, ignored);
}

void Checkpoints::Impl::write_together(const std::function<void()>& work) {
  try {
    world.together("saving a checkpoint", work);
  } catch (const SharedError& error) {
    throw WriteFailed(error.what());
  }
}

// Waits for the disk, where the save is to be tried again.
bool Checkpoints::Impl::may_try_again(const WriteFailed& failure) {
  if (in_flight->num_tries_left == 0) return false;
  const auto pause = kPauses[std::size(kPauses) - in_flight->num_tries_left--];
  if (world.rank() == 0) {
    spdlog::warn("{}; trying again in {} s", failure.what(), pause.count());
  }
  std::this_thread::sleep_for(pause);
  return true;
}

// Nothing: it is being written once more, from the same snapshot.
std::optional<SavedCheckpoint> Checkpoints::Impl::commit() {
  const auto started = Clock::now();
  try {
    return complete();
  } catch (const WriteFailed& failure) {
    try {
      if (!may_try_again(failure)) throw;
      make_folder();
    } catch (const std::exception&) {
      give_up();
      throw;
    }
  } catch (const std::exception&) {
    give_up();
    throw;
  }
  begin_writing();
  in_flight->stall_seconds += seconds_since(started);
  return std::nullopt;
}

SavedCheckpoint Checkpoints::Impl::complete() {
  const auto started = Clock::now();
  InFlight& save = *in_flight;
  Written written;
  // What is thrown here is no matter of the checkpoint's own files.
  world.together("saving a checkpoint", [&] { written = save.written.get(); });
  write_together([&] {
    if (written.failure) std::rethrow_exception(written.failure);
  });
  const std::vector<std::string> reports = world.gather_first(dumped(written.report));
  const double write_seconds = world.max(written.report.at("seconds").get<double>());
  std::string manifest;
  world.together("saving a checkpoint", [&] {
    if (world.rank() == 0) manifest = text_of_manifest(reports);
  });
  write_together([&] {
    if (world.rank() != 0) return;
    write_file_atomically(save.writing + "/" + kManifestName, manifest);
    publish_checkpoint(save.writing, save.folder);
  });
  if (world.rank() == 0) {
    retiring = std::async(std::launch::async, [this, saved = save.folder] { retire(saved); });
  }
  SavedCheckpoint saved{save.id, save.folder, 0, write_seconds};
  saved.stall_seconds = world.max(save.stall_seconds + seconds_since(started));
  in_flight.reset();
  return saved;
}

std::string Checkpoints::Impl::text_of_manifest(const std::vector<std::string>& reports) const {
  std::vector<nlohmann::json> parsed;
  for (const std::string& text : reports) parsed.push_back(nlohmann::json::parse(text));
  Manifest manifest = assemble(in_flight->snapshot, parsed);
  manifest.id = in_flight->id;
  manifest.recipe = in_flight->recipe;
  return manifest_text(manifest);
}

void Checkpoints::Impl::retire(const std::string& saved) {
  try {
    retire_checkpoints(folder, saved, keep);
  } catch (const std::exception& error) {
    spdlog::warn("old checkpoints could not be deleted: {}", error.what());
  }
}

// Looks at this rank's share of the pieces: empty when they are right, else what is wrong.
std::string Checkpoints::Impl::whole_or_why(const std::string& checkpoint) {
  found.reset();
  try {
    found = read_checkpoint(checkpoint);
    // The load that follows takes over what was read, where there is room for it.
    const double room = available_host_bytes() / 4 / world.local_size();
    return share_problem(*found, world.rank(), world.size(), static_cast<int64_t>(room));
  } catch (const FileError& error) {
    throw std::runtime_error(std::string(error.what()) +
                             ": whether this checkpoint is whole is not known; run again, or "
                             "delete its folder to continue from the one before");
  } catch (const std::exception& error) {
    return error.what();
  }
}

Checkpoints::Checkpoints(std::string run_folder, World& world, int64_t keep) {
  TORCH_CHECK(keep >= 1, "checkpoints: expected to keep at least 1, got ", keep);
  impl_ = std::make_unique<Impl>(std::move(run_folder), world, keep);
}

Checkpoints::~Checkpoints() = default;

void Checkpoints::start(const CheckpointId& id, const nlohmann::json& recipe,
                        const std::function<void(StateWriter&)>& fill, bool persists) {
  TORCH_CHECK(!is_writing(), "a checkpoint is being written: finish() comes first");
  impl_->start(id, recipe, fill, persists);
}

void Checkpoints::prepare(const std::function<void(StateWriter&)>& fill) {
  if (impl_->preparing.valid()) return;  // the snapshot that is to take it has not come yet
  SnapshotSize size(impl_->world.rank(), impl_->world.size());
  fill(size);
  const int64_t count = impl_->staging.num_lacking(size.num_elements());
  if (count == 0) return;
  impl_->preparing = std::async(std::launch::async, [impl = impl_.get(), count] {
    const c10::DeviceGuard guard(impl->world.device());
    try {
      return impl->staging.make_blocks(count);
    } catch (const std::exception&) {
      return std::vector<at::Tensor>();  // start() will say it, on all ranks
    }
  });
}

bool Checkpoints::is_writing() const { return impl_->in_flight != nullptr; }

std::optional<SavedCheckpoint> Checkpoints::poll() {
  if (!is_writing()) return std::nullopt;
  const bool done =
      impl_->in_flight->written.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  if (impl_->world.any(!done)) return std::nullopt;
  return impl_->commit();
}

std::optional<SavedCheckpoint> Checkpoints::finish() {
  if (!is_writing()) return std::nullopt;
  std::optional<SavedCheckpoint> saved;
  while (!saved) saved = impl_->commit();
  if (impl_->retiring.valid()) impl_->retiring.wait();
  return saved;
}

std::string Checkpoints::save(const CheckpointId& id, const nlohmann::json& recipe,
                              const std::function<void(StateWriter&)>& fill) {
  start(id, recipe, fill);
  return finish()->folder;
}

std::optional<std::string> Checkpoints::newest_valid(std::vector<std::string>& skipped) {
  World& world = impl_->world;
  const std::string& checkpoints = impl_->folder;
  nlohmann::json listed{{"names", nlohmann::json::array()}};
  world.together("looking for checkpoints", [&] {
    if (world.rank() != 0) return;
    const CheckpointListing listing = list_checkpoints(checkpoints);
    for (const FoundCheckpoint& found : listing.complete) {
      listed["names"].push_back(fs::path(found.folder).filename().string());
    }
    listed["problems"] = listing.problems;
    listed["lost"] = listing.num_lost;
  });
  listed = nlohmann::json::parse(world.broadcast(dumped(listed)));
  for (const auto& problem : listed["problems"]) skipped.push_back(problem);
  const auto& names = listed["names"];
  for (auto name = names.rbegin(); name != names.rend(); ++name) {
    const std::string folder = checkpoints + "/" + name->get<std::string>();
    std::string problem;
    world.together("looking at " + folder, [&] { problem = impl_->whole_or_why(folder); });
    const std::vector<std::string> all = world.gather(problem);
    const auto bad = std::find_if(all.begin(), all.end(), [](const auto& s) { return !s.empty(); });
    if (bad == all.end()) return folder;
    impl_->found.reset();
    skipped.push_back(*bad);
  }
  const int64_t num_lost = listed["lost"].get<int64_t>() + static_cast<int64_t>(names.size());
  if (num_lost == 0) return std::nullopt;
  // Not a new run: beginning anew would overwrite what may still be mended.
  throw SharedError(checkpoints + ": none of " + std::to_string(num_lost) +
                    " checkpoint(s) can be used" +
                    (skipped.empty() ? " (all were set aside)" : " (" + skipped.back() + ")") +
                    "; restore one from a copy, or choose another run.folder to begin anew");
}

std::optional<std::string> Checkpoints::last_boundary(int64_t stage_index) const {
  std::optional<std::string> last;
  for (const FoundCheckpoint& found : list_checkpoints(impl_->folder).complete) {
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

std::unique_ptr<OpenCheckpoint> Checkpoints::open(const std::string& checkpoint_folder) {
  return make_checkpoint_reader(read_checkpoint(checkpoint_folder));
}

std::unique_ptr<OpenCheckpoint> Checkpoints::open_on_all(const std::string& checkpoint_folder) {
  auto found = std::exchange(impl_->found, std::nullopt);
  if (!found || found->folder != checkpoint_folder) found = read_checkpoint(checkpoint_folder);
  return make_checkpoint_reader(std::move(*found), &impl_->world);
}

}  // namespace sala
