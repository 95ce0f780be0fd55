// What goes into a checkpoint, and what is said of it.
#include "trainer/saver.h"

#include <fmt/format.h>

#include <cmath>
#include <filesystem>

namespace sala {
namespace {

constexpr int kMostFailures = 3;       // in a row
constexpr int64_t kStepsToNext = 100;  // at most, after a failure

}  // namespace

void Saver::save(const CheckpointId& id, const Stage* stage, bool evaluation_due, bool stops) {
  finish();  // its lines are among those that this one counts
  run_.world.together("saving a checkpoint", [&] {
    if (lock_) lock_->check();
    run_.metrics.sync();
    run_.metrics.check();
  });
  run_.require_equal_copies();
  before_ = std::exchange(newest_, {id.stage_index, id.step});
  id_ = id;
  last_chance_ = id.boundary || stops;
  again_at_ = 0;
  const auto fill = [&](StateWriter& out) {
    run_.save(out, id.boundary);
    out.json("runner", {{"evaluation_due", evaluation_due}});
    if (stage) stage->save(out);
  };
  attempt([&] { checkpoints_.start(id, record_, fill, /*persists=*/last_chance_); });
}

// Every rank has the same failures, and comes to the same end.
template <class Work>
void Saver::attempt(const Work& work) {
  try {
    work();
  } catch (const WriteFailed& failure) {
    if (last_chance_) throw;
    if (++num_failed_ == kMostFailures) {
      throw SharedError(fmt::format("{} ({} checkpoints in a row could not be written)",
                                    failure.what(), num_failed_));
    }
    tell_failure(failure.what());
  }
}

void Saver::tell_failure(const std::string& why) {
  newest_ = before_;
  again_at_ = id_.step + kStepsToNext;
  run_.metrics.event({{"event", "checkpoint_failed"},
                      {"stage", id_.stage},
                      {"step", id_.step},
                      {"in_a_row", num_failed_},
                      {"text", why}});
  run_.metrics.note(fmt::format(
      "WARNING: stage {}, step {}: no checkpoint: {}; the run goes on and saves again within {} "
      "steps; {} failures in a row end it",
      id_.stage, id_.step, why, kStepsToNext, kMostFailures));
}

void Saver::prepare(const Stage& stage) {
  checkpoints_.prepare([&](StateWriter& out) {
    run_.save(out, /*boundary=*/false);
    stage.save(out);
  });
}

void Saver::poll() {
  attempt([&] {
    if (const auto saved = checkpoints_.poll()) tell(*saved);
  });
}

void Saver::finish() {
  if (!checkpoints_.is_writing()) return;
  run_.world.together("saving a checkpoint", [&] {
    if (lock_) lock_->check();
  });
  attempt([&] {
    if (const auto saved = checkpoints_.finish()) tell(*saved);
  });
}

void Saver::finish_after_error() noexcept {
  try {
    finish();
  } catch (const std::exception&) {  // the first error is the one to tell
  }
}

void Saver::tell(const SavedCheckpoint& saved) {
  num_failed_ = 0;
  const CheckpointId& id = saved.id;
  run_.metrics.event({{"event", "checkpoint"},
                      {"stage", id.stage},
                      {"step", id.step},
                      {"folder", saved.folder},
                      {"stall_seconds", saved.stall_seconds},
                      {"write_seconds", saved.write_seconds}});
  const std::string what = !id.boundary ? fmt::format("stage {}, step {}", id.stage, id.step)
                           : id.stage == "done" ? "all stages done"
                                                : "before stage " + id.stage;
  // Without the run folder, which was said at the start: the line fits.
  run_.metrics.note(fmt::format("checkpoint {} ({}), stall {:.1f} s, written in {:.1f} s",
                                std::filesystem::path(saved.folder).filename().string(), what,
                                saved.stall_seconds, saved.write_seconds));
  warn_if_too_slow(saved);
}

// A stop may come just after a checkpoint was begun: then it completes that one and writes another.
void Saver::warn_if_too_slow(const SavedCheckpoint& saved) {
  const double needed = saved.stall_seconds + 2 * saved.write_seconds;
  if (!stop_seconds_ || needed <= *stop_seconds_ || warned_) return;
  warned_ = true;
  const int64_t enough = 60 * static_cast<int64_t>(std::ceil(1.25 * needed / 60));
  run_.metrics.note(fmt::format(
      "WARNING: the launcher ends the run {:.0f} s after it asks to stop, and a stop may take "
      "{:.0f} s (one checkpoint to complete, another to write): the newest would be lost. Submit "
      "with --signal=B:USR1@{} and SALA_STOP_SECONDS={}, or put run.folder on a faster disk",
      *stop_seconds_, std::ceil(needed), enough, enough));
}

}  // namespace sala
