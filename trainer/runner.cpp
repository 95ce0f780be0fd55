// The loop over stages: start or continue, step, save, stop.
#include "trainer/runner.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <algorithm>
#include <chrono>
#include <filesystem>

#include "trainer/checkpoint/checkpoints.h"
#include "trainer/checks/check_command.h"
#include "trainer/checks/input_identity.h"
#include "trainer/checks/start_check.h"
#include "trainer/evaluation/evaluate.h"
#include "trainer/folder/export.h"
#include "trainer/folder/export_student.h"
#include "trainer/journal/own_files.h"
#include "trainer/journal/recipe_record.h"
#include "trainer/journal/report.h"
#include "trainer/journal/run_folder.h"
#include "trainer/plan.h"
#include "trainer/ranks/agreement.h"
#include "trainer/ranks/device_info.h"
#include "trainer/ranks/stop_signals.h"
#include "trainer/run.h"

namespace sala {

namespace {

class Runner {
 public:
  Runner(Recipe& recipe, World& world, const RunnerOptions& options)
      : recipe_(recipe),
        world_(world),
        options_(options),
        record_(recipe_record(recipe)),
        checkpoints_(recipe.run.folder, world, recipe.run.keep_checkpoints) {}

  int operator()() {
    require_equal_facts(world_, facts_of_start(world_, recipe_, options_));
    world_.together("run folder " + recipe_.run.folder, [&] {
      if (world_.rank() != 0 || exports()) return;
      lock_ = std::make_unique<RunLock>(recipe_.run.folder);
      check_own_files(recipe_.run.folder);
    });
    find_start();
    if (!exports()) check_before_start();
    const bool writes = world_.rank() == 0 && !exports();
    world_.together("", [&] {
      metrics_ = std::make_unique<Metrics>(recipe_.run.folder, writes, metrics_bytes_);
      if (writes && metrics_->size() < metrics_bytes_) {
        notes_.push_back(
            fmt::format("metrics.jsonl lacks {} bytes of the lines before the "
                        "checkpoint: they were lost",
                        metrics_bytes_ - metrics_->size()));
      }
    });
    for (const std::string& line : notes_) metrics_->note(line);
    world_.together("source model " + recipe_.source,
                    [&] { run_ = std::make_unique<Run>(recipe_, world_, *metrics_); });
    // An export reads no data.
    if (!exports() && !check_inputs(*run_, options_.verify_data)) {
      metrics_->note("stopped on a signal before the first step; run the same command again");
      return kExitCheckpointed;
    }
    if (!exports()) identify_inputs();
    if (reader_) world_.together("loading " + start_folder_, [&] { run_->load(*reader_); });
    if (!options_.from.empty()) run_->forked_from = options_.from;
    if (!options_.export_to.empty()) {
      export_now();
      return 0;
    }
    describe_run();
    for (size_t s = start_.stage_index; s < recipe_.stages.size(); ++s) {
      if (run_stage(s) == kExitCheckpointed) return kExitCheckpointed;
    }
    if (start_.stage_index == static_cast<int64_t>(recipe_.stages.size())) look_after_end();
    finish();
    return 0;
  }

 private:
  bool exports() const { return !options_.export_to.empty(); }

  // Before anything is computed: all that stages still to run will need.
  void check_before_start() {
    if (start_.stage_index == static_cast<int64_t>(recipe_.stages.size())) return;  // all is done
    world_.together("", [&] {
      const CheckDevice device = check_device(world_.device());
      const bool continues = !start_folder_.empty() && options_.from.empty();
      std::vector<std::string> warnings;
      preflight(recipe_,
                {device, world_.size(), world_.local_size(), start_.stage_index, continues,
                 world_.rank() == 0},
                warnings);
      recipe_.problems.raise();
      for (const std::string& line : warnings) notes_.push_back("warning: " + line);
    });
  }

  void export_now() {
    const auto lines = export_student(*run_, options_.export_to, checkpoint_as_maker(start_folder_),
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

  // Where to begin: the newest valid checkpoint of this folder, else --from, else the start.
  void find_start() {
    std::vector<std::string> skipped;
    std::optional<std::string> newest;
    if (!exports() || options_.from.empty()) newest = checkpoints_.newest_valid(skipped);
    for (const std::string& line : skipped) notes_.push_back("passed over " + line);
    if (newest && !options_.from.empty()) {
      world_.together("--from", [&] {
        // The same command again (a requeued job): the fork goes on.
        if (Checkpoints::open(*newest)->json("run").at("forked_from") == options_.from) return;
        throw std::runtime_error(fmt::format(
            "--from {} forks a new run, but {} already holds the checkpoint {}; choose another "
            "run.folder, or leave out --from to continue it",
            options_.from, recipe_.run.folder, *newest));
      });
    }
    if (newest) {
      start_folder_ = *newest;
    } else {
      if (!exports()) refuse_lost_checkpoints();
      if (options_.from.empty()) return;
      start_folder_ = options_.from;
    }
    continues_ = newest.has_value();
    world_.together("checkpoint " + start_folder_, [&] {
      reader_ = Checkpoints::open(start_folder_);
      start_ = Checkpoints::id(start_folder_);
      if (newest) {
        check_unchanged_recipe();
        last_saved_ = {start_.stage_index, start_.step};
        metrics_bytes_ = reader_->json("run").at("metrics_bytes").get<int64_t>();
      } else {
        start_at_stage_of(start_);
        check_fork();
      }
    });
    notes_.push_back(fmt::format("{} {}: stage {}, step {}", newest ? "continuing" : "forking",
                                 start_folder_, start_.stage, start_.step));
  }

  // Metrics that tell of checkpoints, and no checkpoint: a disk that is not mounted, or a loss.
  void refuse_lost_checkpoints() {
    world_.together("", [&] {
      const std::string metrics = recipe_.run.folder + "/metrics.jsonl";
      if (world_.rank() != 0 || !tells_of_checkpoints(metrics)) return;
      throw std::runtime_error(fmt::format(
          "{} tells of checkpoints, but {}/checkpoints holds none: restore them, choose another "
          "run.folder, or delete metrics.jsonl to begin anew here",
          metrics, recipe_.run.folder));
    });
  }

  void check_unchanged_recipe() const {
    const int64_t begun = start_.stage_index + (start_.step > 0 ? 1 : 0);
    const auto changes = recipe_changes(Checkpoints::recipe(start_folder_), record_, begun);
    if (changes.empty()) return;
    std::vector<std::string> texts;
    int64_t first_stage = changes[0].stage;
    for (const RecipeChange& change : changes) {
      texts.push_back(change.text);
      first_stage = std::min(first_stage, change.stage);
    }
    const auto before = checkpoints_.last_boundary(first_stage);
    throw std::runtime_error(fmt::format(
        "the recipe changed in what {} was made with: {}; restore these values, or start another "
        "run.folder {}",
        start_folder_, fmt::join(texts, "; "),
        before ? "with --from " + *before + ", the last checkpoint before the change"
               : "from the beginning: no checkpoint is older than the change"));
  }

  // A continued run must read the bytes that it began with, wherever they lie now.
  void identify_inputs() {
    const nlohmann::json none = nlohmann::json::object();
    const nlohmann::json saved = reader_ ? reader_->json("run").value("inputs", none) : none;
    run_->inputs = input_identity(recipe_, world_, *run_->stores, saved);
    if (!continues_ || saved.empty()) return;
    const auto differences = input_differences(saved, run_->inputs);
    if (differences.empty()) return;
    throw SharedError(fmt::format(
        "{} was made with other inputs; changed since: {}; restore them, or start another "
        "run.folder",
        start_folder_, fmt::join(differences, "; ")));
  }

  // A fork's recipe may list other stages: it continues at the stage of the checkpoint's name if
  // the recipe has one, else at its first stage, with the checkpoint's model.
  void start_at_stage_of(CheckpointId& id) {
    for (size_t s = 0; s < recipe_.stages.size(); ++s) {
      if (recipe_.stages[s]->name == id.stage) {
        id.stage_index = static_cast<int64_t>(s);
        return;
      }
    }
    id.stage_index = 0;
    id.step = 0;
  }

  // What a stage makes of the full-attention model, a checkpoint of a hybrid does not go on from.
  void check_fork() const {
    if (exports() || !reader_->json("run").at("has_student").get<bool>()) return;
    for (auto s = static_cast<size_t>(start_.stage_index); s < recipe_.stages.size(); ++s) {
      const Stage& stage = *recipe_.stages[s];
      if ((s == static_cast<size_t>(start_.stage_index) && start_.step > 0) ||
          !stage.needs_full_source()) {
        continue;
      }
      throw std::runtime_error(fmt::format(
          "it holds a converted model at `{}`, but the run would begin with {} and come to {}, "
          "which needs the full-attention one; fork from a checkpoint before the swap, or leave "
          "these stages out",
          start_.stage, recipe_.stages[static_cast<size_t>(start_.stage_index)]->name, stage.name));
    }
  }

  void describe_run() {
    world_.together("", [&] {
      if (world_.rank() != 0) return;
      write_own_text(recipe_.run.folder + "/" + kRecipeFile, resolved_yaml(recipe_));
    });
    if (continues_) {  // its line came after the lines that it counts
      metrics_->event({{"event", "checkpoint"},
                       {"stage", start_.stage},
                       {"step", start_.step},
                       {"folder", start_folder_}});
    }
    metrics_->note(fmt::format("{} rank(s) on {}; run folder {}", world_.size(),
                               device_name(world_.device()), recipe_.run.folder));
    const double peak = device_peak_flops(world_.device());
    if (peak > 0) {
      metrics_->note(
          fmt::format("MFU counts causal FLOPs against {:.0f} TFLOP/s (dense bf16 "
                      "datasheet peak)",
                      peak / 1e12));
    }
    metrics_->event({{"event", "start"},
                     {"ranks", world_.size()},
                     {"peak_flops", peak},
                     {"device", device_name(world_.device())},
                     {"stage_index", start_.stage_index},
                     {"step", start_.step}});
  }

  // Of the stages after `s`, all ranks together, by the plan.
  double later_flops(size_t s) const {
    const ModelConfig& source = run_->source;
    const PlanContext context{recipe_, source, planned_hybrid(recipe_, source), world_.size(),
                              world_.device().is_cuda()};
    double flops = 0;
    for (size_t later = s + 1; later < recipe_.stages.size(); ++later) {
      flops += recipe_.stages[later]->plan(context).flops;
    }
    return flops;
  }

  int run_stage(size_t s) {
    Stage& stage = *recipe_.stages[s];
    metrics_->begin_stage(s + 1, recipe_.stages.size(), later_flops(s));
    metrics_->note(fmt::format("stage {}/{}: {}{}", s + 1, recipe_.stages.size(), stage.name,
                               stage.name == stage.type() ? "" : " (" + stage.type() + ")"));
    world_.now_at(stage.name, 0);
    stage.begin(*run_);
    const bool resumes =
        reader_ && static_cast<int64_t>(s) == start_.stage_index && start_.step > 0;
    if (resumes) {
      world_.together("loading " + start_folder_, [&] { stage.load(*reader_); });
      evaluation_due_ = reader_->has("runner") && reader_->json("runner").at("evaluation_due");
    }
    reader_.reset();
    while (true) {
      world_.now_at(stage.name, stage.step());
      if (interrupted()) return stop(s, stage);
      try {
        evaluate_if_due(stage);
        if (!stage.advance(*run_)) break;
        after_step(s, stage);
      } catch (const Stopped&) {
        return stop(s, stage);
      }
    }
    stage.end(*run_);
    const bool last = s + 1 == recipe_.stages.size();
    const std::string next = last ? "done" : recipe_.stages[s + 1]->name;
    save({static_cast<int64_t>(s) + 1, next, 0, true}, nullptr);
    write_report();
    return 0;
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

  // A stop that comes first is kept in its checkpoint: the evaluation is made at the next start.
  void evaluate_if_due(Stage& stage) {
    if (!evaluation_due_) return;
    const EvaluateOptions* options = evaluate_options(recipe_);
    const auto result = evaluate_model(*run_, *options, stage.name, *run_->student.model, false);
    tell_evaluation(*run_, result, {{"stage", stage.name}, {"step", stage.step()}});
    evaluation_due_ = false;
  }

  void after_step(size_t s, Stage& stage) {
    const int64_t step = stage.step();
    evaluation_due_ = stage.evaluate_every > 0 && step % stage.evaluate_every == 0 &&
                      evaluate_options(recipe_) && run_->student.model;
    if (interrupted()) return;  // the checkpoint of the stop comes first
    evaluate_if_due(stage);
    const bool last = step >= stage.num_steps();  // the boundary's checkpoint follows
    if (stage.save_every > 0 && step % stage.save_every == 0 && !last) {
      save({static_cast<int64_t>(s), stage.name, step, false}, &stage);
    }
  }

  int stop(size_t s, Stage& stage) {
    const int64_t step = stage.step();
    // Before its first step a stage has nothing that the last boundary's checkpoint lacks.
    const bool saved = last_saved_ == std::pair{static_cast<int64_t>(s), step};
    if (step > 0 && !saved) save({static_cast<int64_t>(s), stage.name, step, false}, &stage);
    metrics_->note(
        fmt::format("stopped on a signal at stage {} step {}; run the same command again "
                    "to continue",
                    stage.name, step));
    return kExitCheckpointed;
  }

  void save(const CheckpointId& id, const Stage* stage) {
    world_.together("saving a checkpoint", [&] {
      if (lock_) lock_->check();
      metrics_->sync();  // the checkpoint counts these lines
      metrics_->check();
    });
    last_saved_ = {id.stage_index, id.step};
    const auto started = std::chrono::steady_clock::now();
    const std::string folder = checkpoints_.save(id, record_, [&](StateWriter& out) {
      run_->save(out, id.boundary);
      out.json("runner", {{"evaluation_due", evaluation_due_}});
      if (stage) stage->save(out);
    });
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - started;
    metrics_->event({{"event", "checkpoint"},
                     {"stage", id.stage},
                     {"step", id.step},
                     {"folder", folder},
                     {"stall_seconds", took.count()}});
    const std::string what = stage ? fmt::format("stage {}, step {}", id.stage, id.step)
                             : id.stage == "done" ? "all stages done"
                                                  : "before stage " + id.stage;
    // Without the run folder, which was said at the start: the line fits.
    metrics_->note(fmt::format("checkpoint {} ({}), {:.1f} s",
                               std::filesystem::path(folder).filename().string(), what,
                               took.count()));
  }

  void write_report() {
    world_.together("", [&] {
      if (world_.rank() != 0) return;
      write_own_text(recipe_.run.folder + "/" + kReportFile,
                     report_text(run_->evaluations, run_->verdicts));
    });
  }

  void finish() {
    metrics_->event({{"event", "end"}, {"tokens", run_->tokens_seen}});
    metrics_->sync();
    world_.together("", [&] { metrics_->check(); });
    write_report();
    metrics_->note("finished\n" + report_text(run_->evaluations, run_->verdicts));
  }

  Recipe& recipe_;
  World& world_;
  RunnerOptions options_;
  nlohmann::json record_;
  Checkpoints checkpoints_;
  std::unique_ptr<RunLock> lock_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<Run> run_;
  std::unique_ptr<StateReader>
      reader_;  // of the checkpoint we start from, until its stage has begun
  std::string start_folder_;
  CheckpointId start_;
  std::pair<int64_t, int64_t> last_saved_{-1, -1};  // stage and step
  bool continues_ = false;       // from a checkpoint of this run folder, not of --from
  bool evaluation_due_ = false;  // of the step that was just made
  int64_t metrics_bytes_ = 0;
  std::vector<std::string> notes_;  // before metrics exist
};

}  // namespace

int run_recipe(Recipe& recipe, World& world, const RunnerOptions& options) {
  return Runner(recipe, world, options)();
}

}  // namespace sala
