// Saves a run while it goes on: a checkpoint is begun at one step boundary and becomes complete at
// a later one. Tells of it in metrics.jsonl and to people then.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "trainer/checkpoint/checkpoints.h"
#include "trainer/journal/folder_lock.h"
#include "trainer/ranks/environment.h"
#include "trainer/run.h"
#include "trainer/stage.h"

namespace sala {

class Saver {
 public:
  // `lock`: of the run folder, on rank 0 (null on the others). `record`: the recipe, as checkpoints
  // keep it. All must outlive it.
  Saver(Checkpoints& checkpoints, Run& run, const FolderLock* lock, const nlohmann::json& record)
      : checkpoints_(checkpoints), run_(run), lock_(lock), record_(record) {}

  // All of these are for all ranks together, and throw one error on all.
  //
  // Takes a snapshot, after the checkpoint before it is complete. `stage`: whose state goes in;
  // null between stages. metrics.jsonl is durable up to here first: the checkpoint counts its
  // lines.
  void save(const CheckpointId& id, const Stage* stage, bool evaluation_due);
  // Memory for the snapshots of a stage that has begun.
  void prepare(const Stage& stage);
  void poll();    // at a step boundary: completes what all ranks have written
  void finish();  // waits for it
  // The run ends with an error that all ranks share: what was saved before it is still completed.
  void finish_after_error() noexcept;

  // The stage and step of the newest one: saved here, or the one that the run continues.
  void saved_is(int64_t stage_index, int64_t step) { newest_ = {stage_index, step}; }
  bool has_saved(int64_t stage_index, int64_t step) const {
    return newest_ == std::pair{stage_index, step};
  }

 private:
  void tell(const SavedCheckpoint& saved);
  void warn_if_too_slow(const SavedCheckpoint& saved);

  Checkpoints& checkpoints_;
  Run& run_;
  const FolderLock* lock_;
  const nlohmann::json& record_;
  std::pair<int64_t, int64_t> newest_{-1, -1};  // stage and step
  const std::optional<double> stop_seconds_ = stop_seconds();
  bool warned_ = false;
};

}  // namespace sala
