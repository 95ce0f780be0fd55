// What goes into a checkpoint, and what is said of it.
#include "trainer/saver.h"

#include <fmt/format.h>

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
}

}  // namespace sala
