// The loop over stages: start or continue, step, save, stop.
#include "trainer/runner.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <algorithm>
#include <chrono>

#include "data/atomic_file.h"
#include "trainer/check_inputs.h"
#include "trainer/checkpoint.h"
#include "trainer/device_info.h"
#include "trainer/evaluate.h"
#include "trainer/export_run.h"
#include "trainer/plan.h"
#include "trainer/report.h"
#include "trainer/run.h"
#include "trainer/run_folder.h"

namespace sala {

namespace {

// Every value of the recipe by path, as checkpoints keep it.
nlohmann::json recipe_record(Recipe& recipe) {
  nlohmann::json record = nlohmann::json::object();
  for (const auto& [path, value] : recipe_values(recipe)) record[path] = value;
  return record;
}

// A value that a continued run must not change: everything but where files lie, how often we save,
// and stages that have not begun.
bool is_fixed(const std::string& path, int64_t stages_begun) {
  for (const char* free : {"run.folder", "run.device", "run.keep_checkpoints"}) {
    if (path == free) return false;
  }
  for (const char* free : {".save_every", ".evaluate_every", ".micro_tokens", ".recompute"}) {
    if (path.ends_with(free)) return false;
  }
  if (!path.starts_with("stages[")) return true;
  return std::stoll(path.substr(7)) < stages_begun;
}

void check_unchanged(const nlohmann::json& saved, const nlohmann::json& now, int64_t stages_begun,
                     const std::string& checkpoint) {
  std::vector<std::string> changed;
  auto differ = [&](const nlohmann::json& a, const nlohmann::json& b) {
    for (const auto& [path, value] : a.items()) {
      if (!is_fixed(path, stages_begun)) continue;
      const std::string other = b.value(path, "(absent)"), mine = value.get<std::string>();
      const std::string line = fmt::format("{}: {} -> {}", path, saved.value(path, "(absent)"),
                                           now.value(path, "(absent)"));
      if (other != mine && std::find(changed.begin(), changed.end(), line) == changed.end()) {
        changed.push_back(line);
      }
    }
  };
  differ(saved, now);
  differ(now, saved);
  if (changed.empty()) return;
  throw std::runtime_error(fmt::format(
      "the recipe changed in what {} was made with: {}; restore these values, or start another run "
      "folder with --from {}",
      checkpoint, fmt::join(changed, "; "), checkpoint));
}

class Runner {
 public:
  Runner(Recipe& recipe, World& world, const RunnerOptions& options)
      : recipe_(recipe),
        world_(world),
        options_(options),
        record_(recipe_record(recipe)),
        checkpoints_(recipe.run.folder, world, recipe.run.keep_checkpoints) {}

  int operator()() {
    world_.together("run folder " + recipe_.run.folder, [&] {
      if (world_.rank() == 0 && !exports()) lock_ = std::make_unique<RunLock>(recipe_.run.folder);
    });
    find_start();
    const bool writes = world_.rank() == 0 && !exports();
    metrics_ = std::make_unique<Metrics>(recipe_.run.folder, writes, metrics_bytes_);
    for (const std::string& line : notes_) metrics_->note(line);
    world_.together("source model " + recipe_.source,
                    [&] { run_ = std::make_unique<Run>(recipe_, world_, *metrics_); });
    world_.together("", [&] { check_inputs(*run_); });
    if (reader_) world_.together("loading " + start_folder_, [&] { run_->load(*reader_); });
    if (!options_.from.empty()) run_->forked_from = options_.from;
    if (!options_.export_to.empty()) {
      export_student(*run_, options_.export_to, 5'000'000'000);
      return 0;
    }
    describe_run();
    for (size_t s = start_.stage_index; s < recipe_.stages.size(); ++s) {
      if (run_stage(s) == kExitCheckpointed) return kExitCheckpointed;
    }
    finish();
    return 0;
  }

 private:
  bool exports() const { return !options_.export_to.empty(); }

  // Where to begin: the newest valid checkpoint of this folder, else --from, else the start.
  void find_start() {
    std::vector<std::string> skipped;
    auto newest = checkpoints_.newest_valid(skipped);
    if (exports() && !options_.from.empty()) newest.reset();
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
    } else if (!options_.from.empty()) {
      start_folder_ = options_.from;
    } else {
      return;
    }
    world_.together("checkpoint " + start_folder_, [&] {
      reader_ = Checkpoints::open(start_folder_);
      start_ = Checkpoints::id(start_folder_);
      if (newest) {
        const int64_t begun = start_.stage_index + (start_.step > 0 ? 1 : 0);
        check_unchanged(Checkpoints::recipe(start_folder_), record_, begun, start_folder_);
        metrics_bytes_ = reader_->json("run").at("metrics_bytes").get<int64_t>();
      } else {
        start_at_stage_of(start_);
      }
    });
    notes_.push_back(fmt::format("{} {}: stage {}, step {}", newest ? "continuing" : "forking",
                                 start_folder_, start_.stage, start_.step));
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

  void describe_run() {
    if (world_.rank() == 0) {
      write_file_atomically(recipe_.run.folder + "/recipe.yaml", resolved_yaml(recipe_));
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
    metrics_->note(fmt::format("stage {} ({}/{}): {}", stage.name, s + 1, recipe_.stages.size(),
                               stage.type()));
    stage.begin(*run_);
    const bool resumes =
        reader_ && static_cast<int64_t>(s) == start_.stage_index && start_.step > 0;
    if (resumes) world_.together("loading " + start_folder_, [&] { stage.load(*reader_); });
    reader_.reset();
    while (true) {
      if (world_.any(stop_requested())) return stop(s, stage);
      try {
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

  void after_step(size_t s, Stage& stage) {
    const int64_t step = stage.step();
    if (world_.any(stop_requested())) return;  // the checkpoint of the stop comes first
    if (stage.evaluate_every > 0 && step % stage.evaluate_every == 0) {
      const EvaluateOptions* options = evaluate_options(recipe_);
      if (options && run_->student.model) {
        nlohmann::json result =
            evaluate_model(*run_, *options, stage.name, *run_->student.model, false);
        result.update({{"event", "evaluate"}, {"stage", stage.name}, {"step", step}});
        metrics_->event(result);
      }
    }
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
    last_saved_ = {id.stage_index, id.step};
    const auto started = std::chrono::steady_clock::now();
    const std::string folder = checkpoints_.save(id, record_, [&](StateWriter& out) {
      run_->save(out);
      if (stage) stage->save(out);
    });
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - started;
    metrics_->event({{"event", "checkpoint"},
                     {"stage", id.stage},
                     {"step", id.step},
                     {"folder", folder},
                     {"stall_seconds", took.count()}});
    const std::string what = stage ? fmt::format("stage {}, step {}", id.stage, id.step)
                                   : id.stage == "done" ? "all stages done" : "before stage " + id.stage;
    metrics_->note(fmt::format("checkpoint ({}): {} ({:.1f} s)", what, folder, took.count()));
  }

  void write_report() {
    if (world_.rank() != 0) return;
    write_file_atomically(recipe_.run.folder + "/report.txt",
                          report_text(run_->evaluations, run_->verdicts));
  }

  void finish() {
    write_report();
    metrics_->event({{"event", "end"}, {"tokens", run_->tokens_seen}});
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
  int64_t metrics_bytes_ = -1;
  std::vector<std::string> notes_;  // before metrics exist
};

}  // namespace

int run_recipe(Recipe& recipe, World& world, const RunnerOptions& options) {
  return Runner(recipe, world, options)();
}

}  // namespace sala
