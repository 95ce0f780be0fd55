// Saves a run while it goes on: a checkpoint is begun at one step boundary and becomes complete at
// a later one. Tells of it in metrics.jsonl and to people then.
//
// One that cannot be written inside a stage is told of, and the run goes on with what it has in
// memory: the next one comes soon. Not three times in a row, nor where there is no later chance.
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
  // null between stages. `stops`: no step follows. metrics.jsonl is durable up to here first: the
  // checkpoint counts its lines.
  void save(const CheckpointId& id, const Stage* stage, bool evaluation_due, bool stops = false);
  // Whether one is due at this step of a stage that saves every `every` steps (0: never).
  bool is_due(int64_t step, int64_t every) const {
    return every > 0 && (step % every == 0 || (again_at_ > 0 && step >= again_at_));
  }
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
  template <class Work>
  void attempt(const Work& work);
  void tell_failure(const std::string& why);
  void tell(const SavedCheckpoint& saved);
  void warn_if_too_slow(const SavedCheckpoint& saved);

  Checkpoints& checkpoints_;
  Run& run_;
  const FolderLock* lock_;
  const nlohmann::json& record_;
  using Place = std::pair<int64_t, int64_t>;  // stage and step
  Place newest_{-1, -1}, before_{-1, -1};     // before_: the one that was written before newest_
  CheckpointId id_;                           // of newest_, if it was saved here
  bool last_chance_ = false;                  // it must not fail
  int num_failed_ = 0;                        // in a row
  int64_t again_at_ = 0;                      // step of the stage; 0: none has failed
  const std::optional<double> stop_seconds_ = stop_seconds();
  bool warned_ = false;
};

}  // namespace sala
