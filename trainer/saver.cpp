// What goes into a checkpoint, and what is said of it.
#include "trainer/saver.h"

#include <fmt/format.h>

#include <cmath>
#include <filesystem>

namespace sala {

void Saver::save(const CheckpointId& id, const Stage* stage, bool evaluation_due) {
  finish();  // its lines are among those that this one counts
  run_.world.together("saving a checkpoint", [&] {
    if (lock_) lock_->check();
    run_.metrics.sync();
    run_.metrics.check();
  });
  run_.require_equal_copies();
  newest_ = {id.stage_index, id.step};
  checkpoints_.start(id, record_, [&](StateWriter& out) {
    run_.save(out, id.boundary);
    out.json("runner", {{"evaluation_due", evaluation_due}});
    if (stage) stage->save(out);
  });
}

void Saver::prepare(const Stage& stage) {
  checkpoints_.prepare([&](StateWriter& out) {
    run_.save(out, /*boundary=*/false);
    stage.save(out);
  });
}

void Saver::poll() {
  if (const auto saved = checkpoints_.poll()) tell(*saved);
}

void Saver::finish() {
  if (!checkpoints_.is_writing()) return;
  run_.world.together("saving a checkpoint", [&] {
    if (lock_) lock_->check();
  });
  if (const auto saved = checkpoints_.finish()) tell(*saved);
}

void Saver::finish_after_error() noexcept {
  try {
    finish();
  } catch (const std::exception&) {  // the first error is the one to tell
  }
}

void Saver::tell(const SavedCheckpoint& saved) {
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
