// The loop over stages: start or continue, step, save, stop.
#include "trainer/runner.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "trainer/checkpoint/checkpoints.h"
#include "trainer/checks/rank_count.h"
#include "trainer/checks/start_check.h"
#include "trainer/evaluation/evaluate.h"
#include "trainer/folder/export.h"
#include "trainer/folder/export_student.h"
#include "trainer/journal/folder_lock.h"
#include "trainer/journal/own_files.h"
#include "trainer/journal/profiler.h"
#include "trainer/journal/recipe_record.h"
#include "trainer/journal/report.h"
#include "trainer/planning/plan.h"
#include "trainer/ranks/agreement.h"
#include "trainer/ranks/device_info.h"
#include "trainer/ranks/stop_signals.h"
#include "trainer/report/live_page.h"
#include "trainer/run.h"
#include "trainer/saver.h"
#include "trainer/start/record.h"
#include "trainer/start/start.h"

namespace sala {

namespace {

class Runner {
 public:
  Runner(Recipe& recipe, World& world, const RunnerOptions& options)
      : recipe_(recipe),
        world_(world),
        options_(options),
        record_(recipe_record(recipe)),
        checkpoints_(recipe.run.folder, world, recipe.run.keep_checkpoints),
        profiler_(recipe.run.folder, world.rank(), world.device(), options.profile_steps) {}

  int operator()() {
    require_equal_facts(world_, facts_of_start(world_, recipe_, options_));
    if (!take_folder()) return kExitCheckpointed;
    start_ = find_start(recipe_, world_, checkpoints_, options_, record_);
    if (!exports()) check_before_start(recipe_, world_, start_);
    open_metrics();
    world_.together("source model " + recipe_.source,
                    [&] { run_ = std::make_unique<Run>(recipe_, world_, *metrics_); });
    if (!exports()) require_attention_kernels(*run_, planned_hybrid(recipe_, run_->source));
    // An export reads no data.
    if (!exports() && !check_inputs(*run_, options_.verify_data)) {
      metrics_->note("stopped on a signal before the first step; run the same command again");
      return kExitCheckpointed;
    }
    if (!exports()) identify_inputs(*run_, start_);
    if (start_.reader) {
      run_->parameter_comms();  // made by all ranks together, while none has a reason to throw
      world_.together("loading " + start_.folder, [&] { run_->load(*start_.reader); });
      // A fork that begins a stage anew counts its rows anew, whatever the checkpoint's is called.
      const bool anew = !exports() && !start_.continues && start_.id.step == 0;
      if (anew && !run_->data_state.is_null()) run_->data_state["stage"] = "";
      run_->publish_loaded();
    }
    if (!options_.export_to.empty()) {
      export_now();
      return 0;
    }
    record_start(*run_, start_, options_, plan_context());
    if (world_.rank() == 0) page_ = std::make_unique<LivePage>(recipe_.run.folder, *metrics_);
    write_page(/*alive=*/true);
    saver_ = std::make_unique<Saver>(checkpoints_, *run_, lock_.get(), record_);
    if (start_.continues) saver_->saved_is(start_.id.stage_index, start_.id.step);
    try {
      return run_stages();
    } catch (const SharedError& error) {
      saver_->finish_after_error();
      metrics_->event({{"event", "error"}, {"text", error.what()}});
      write_page(/*alive=*/false);
      throw;
    }
  }

 private:
  bool exports() const { return !options_.export_to.empty(); }

  // False when a signal asked to stop while the folder was waited for.
  bool take_folder() {
    try {
      world_.together("run folder " + recipe_.run.folder, [&] {
        if (world_.rank() != 0 || exports()) return;
        lock_ = std::make_unique<FolderLock>(recipe_.run.folder, "run.folder");
        check_own_files(recipe_.run.folder);
      });
    } catch (const SharedError& error) {
      if (!world_.any(stop_requested())) throw;
      spdlog::warn("{}; stopped on a signal; run the same command again", error.what());
      return false;
    }
    return true;
  }

  void open_metrics() {
    const bool writes = world_.rank() == 0 && !exports();
    world_.together("", [&] {
      metrics_ = std::make_unique<Metrics>(recipe_.run.folder, writes, start_.metrics_bytes);
      if (writes && metrics_->size() < start_.metrics_bytes) {
        start_.notes.push_back(
            fmt::format("metrics.jsonl lacks {} bytes of the lines before the "
                        "checkpoint: they were lost",
                        start_.metrics_bytes - metrics_->size()));
      }
    });
    for (const std::string& line : start_.notes) metrics_->note(line);
  }

  void export_now() {
    const auto lines = export_student(*run_, options_.export_to, checkpoint_as_maker(start_.folder),
                                      kMaxShardBytes);
    for (const std::string& line : lines) std::fputs((line + "\n").c_str(), stdout);
  }

  // Everything was done when this start began.
  void look_after_end() {
    bool model_is_final = true;
    for (size_t s = recipe_.stages.size(); s-- > 0;) {
      recipe_.stages[s]->look_after_end(*run_, model_is_final);
      model_is_final = model_is_final && !recipe_.stages[s]->changes_model();
    }
  }

  PlanContext plan_context() const {
    const ModelConfig& source = run_->source;
    return {recipe_,
            source,
            planned_hybrid(recipe_, source),
            world_.size(),
            world_.device().is_cuda(),
            /*longest_choice=*/0,
            /*task_lengths=*/{}};
  }

  // Of the stages after `s`, all ranks together, by the plan.
  double later_flops(size_t s) const {
    const PlanContext context = plan_context();
    double flops = 0;
    for (size_t later = s + 1; later < recipe_.stages.size(); ++later) {
      flops += recipe_.stages[later]->plan(context).flops;
    }
    return flops;
  }

  int run_stages() {
    const auto first = static_cast<size_t>(start_.id.stage_index);
    for (size_t s = first; s < recipe_.stages.size(); ++s) {
      if (run_stage(s) == kExitCheckpointed) return kExitCheckpointed;
    }
    if (first == recipe_.stages.size()) look_after_end();
    finish();
    return 0;
  }

  int run_stage(size_t s) {
    Stage& stage = *recipe_.stages[s];
    try {
      return run_steps(s, stage);
    } catch (const c10::OutOfMemoryError& error) {
      throw std::runtime_error(out_of_memory_text(stage, stage.plan(plan_context()),
                                                  device_memory_bytes(world_.device()),
                                                  error.what_without_backtrace()));
    }
  }

  int run_steps(size_t s, Stage& stage) {
    metrics_->begin_stage(s + 1, recipe_.stages.size(), later_flops(s));
    metrics_->note(fmt::format("stage {}/{}: {}{}", s + 1, recipe_.stages.size(), stage.name,
                               stage.name == stage.type() ? "" : " (" + stage.type() + ")"));
    world_.now_at(stage.name, 0);
    forget_peak_memory(world_.device());  // each stage's own
    require_ranks(stage);
    stage.begin(*run_);
    const bool resumes =
        start_.reader && static_cast<int64_t>(s) == start_.id.stage_index && start_.id.step > 0;
    if (resumes) {
      const StateReader& in = *start_.reader;
      world_.together("loading " + start_.folder, [&] { stage.load(*start_.reader); });
      evaluation_due_ = in.has("runner") && in.json("runner").at("evaluation_due");
    }
    start_.reader.reset();
    saver_->prepare(stage);
    profiler_.begin_stage(stage.name, stage.trains() ? stage.num_steps() - stage.step() : 0);
    while (true) {
      world_.now_at(stage.name, stage.step());
      if (interrupted()) return stop(s, stage);
      saver_->poll();
      try {
        evaluate_if_due(stage);
        profiler_.before_step();
        if (!stage.advance(*run_)) break;
        if (const auto table = profiler_.after_step(something_is_due(stage)); !table.empty()) {
          metrics_->note(table);
        }
        after_step(s, stage);
      } catch (const Stopped&) {
        return stop(s, stage);
      }
    }
    profiler_.forget();
    stage.end(*run_);
    const bool last = s + 1 == recipe_.stages.size();
    const std::string next = last ? "done" : recipe_.stages[s + 1]->name;
    saver_->save({static_cast<int64_t>(s) + 1, next, 0, true}, nullptr, evaluation_due_);
    write_report();
    write_page(/*alive=*/true);
    return 0;
  }

  // A start warns of a stage that its ranks cannot run, which may be weeks away: others may come to
  // it. Where these do, nothing is lost.
  void require_ranks(const Stage& stage) {
    const auto problem = rank_problem(recipe_, stage, world_.size());
    if (!problem) return;
    saver_->finish();
    throw SharedError(fmt::format(
        "stage {} cannot start on {} ranks: {}: {}; all before it is saved, and the same command "
        "goes on from there",
        stage.name, world_.size(), problem->key, problem->text));
  }

  // Whether a signal asks to stop. Errors of rank 0's metrics come up here, on all ranks, and that
  // its lock has gone: two runs would write into one metrics.jsonl.
  bool interrupted() {
    const bool alone = !lock_ || lock_->is_held();
    if (!world_.any(stop_requested() || metrics_->failed() || !alone)) return false;
    world_.together("", [&] {
      if (lock_) lock_->check();
      metrics_->check();
    });
    return world_.any(stop_requested());
  }

  // Whether an evaluation or a checkpoint comes after the step that was just made.
  bool something_is_due(const Stage& stage) const {
    const int64_t step = stage.step();
    const bool evaluates = stage.evaluate_every > 0 && step % stage.evaluate_every == 0;
    return evaluates || saver_->is_due(step, stage.save_every);
  }

  // A stop that comes first is kept in its checkpoint: the evaluation is made at the next start.
  void evaluate_if_due(Stage& stage) {
    if (!evaluation_due_) return;
    const EvaluateOptions* options = evaluate_options(recipe_);
    const auto result = evaluate_model(*run_, *options, stage.name, *run_->student, false);
    tell_evaluation(*run_, result, {{"stage", stage.name}, {"step", stage.step()}});
    evaluation_due_ = false;
    write_page(/*alive=*/true);
  }

  void after_step(size_t s, Stage& stage) {
    const int64_t step = stage.step();
    evaluation_due_ = stage.evaluate_every > 0 && step % stage.evaluate_every == 0 &&
                      evaluate_options(recipe_) && run_->student;
    if (interrupted()) return;  // the checkpoint of the stop comes first
    evaluate_if_due(stage);
    if (page_) page_->refresh();
    const bool last = step >= stage.num_steps();  // the boundary's checkpoint follows
    if (saver_->is_due(step, stage.save_every) && !last) {
      saver_->save({static_cast<int64_t>(s), stage.name, step, false}, &stage, evaluation_due_);
    }
  }

  int stop(size_t s, Stage& stage) {
    const int64_t step = stage.step();
    saver_->finish();  // one that cannot be written is none
    // Before its first step a stage has nothing that the last boundary's checkpoint lacks.
    if (step > 0 && !saver_->has_saved(static_cast<int64_t>(s), step)) {
      saver_->save({static_cast<int64_t>(s), stage.name, step, false}, &stage, evaluation_due_,
                   /*stops=*/true);
      saver_->finish();
    }
    metrics_->event({{"event", "stop"}, {"stage", stage.name}, {"step", step}});
    write_page(/*alive=*/false);
    metrics_->note(
        fmt::format("stopped on a signal at stage {} step {}; run the same command again "
                    "to continue",
                    stage.name, step));
    return kExitCheckpointed;
  }

  void write_report() {
    world_.together("", [&] {
      if (world_.rank() != 0) return;
      write_own_text(recipe_.run.folder + "/" + kReportFile,
                     report_text(run_->evaluations, run_->verdicts));
    });
  }

  // The page for people, where a result has come; `alive`: the run goes on.
  void write_page(bool alive) {
    if (page_) page_->write(alive);
  }

  void finish() {
    saver_->finish();
    metrics_->event({{"event", "end"}, {"tokens", run_->tokens_seen}});
    metrics_->sync();
    world_.together("", [&] { metrics_->check(); });
    write_report();
    write_page(/*alive=*/false);
    metrics_->note("finished\n" + report_text(run_->evaluations, run_->verdicts));
  }

  Recipe& recipe_;
  World& world_;
  RunnerOptions options_;
  nlohmann::json record_;
  std::unique_ptr<FolderLock> lock_;  // let go when no checkpoint is being written any more
  Checkpoints checkpoints_;
  Profiler profiler_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<Run> run_;
  Start start_;
  std::unique_ptr<Saver> saver_;
  bool evaluation_due_ = false;     // of the step that was just made
  std::unique_ptr<LivePage> page_;  // on rank 0
};

}  // namespace

int run_recipe(Recipe& recipe, World& world, const RunnerOptions& options) {
  return Runner(recipe, world, options)();
}

}  // namespace sala
