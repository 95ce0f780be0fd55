// Looking at the run folder's checkpoints and at --from.
#include "trainer/start/start.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "trainer/checks/input_identity.h"
#include "trainer/checks/start_check.h"
#include "trainer/journal/recipe_record.h"
#include "trainer/start/fork.h"

namespace sala {

namespace {

class StartFinder {
 public:
  StartFinder(const Recipe& recipe, World& world, Checkpoints& checkpoints,
              const RunnerOptions& options, const nlohmann::json& record)
      : recipe_(recipe),
        world_(world),
        checkpoints_(checkpoints),
        options_(options),
        record_(record) {}

  Start operator()() {
    std::vector<std::string> skipped;
    std::optional<std::string> newest;
    if (!exports() || options_.from.empty()) newest = checkpoints_.newest_valid(skipped);
    for (const std::string& line : skipped) start_.notes.push_back("passed over " + line);
    std::unique_ptr<OpenCheckpoint> checkpoint;
    if (newest && !options_.from.empty()) checkpoint = open_same_fork(*newest);
    if (newest) {
      start_.folder = *newest;
    } else {
      if (!exports()) refuse_lost_checkpoints();
      if (options_.from.empty()) return std::move(start_);
      start_.folder = options_.from;
    }
    start_.continues = newest.has_value();
    world_.together("checkpoint " + start_.folder, [&] {
      if (!checkpoint) checkpoint = checkpoints_.open_on_all(start_.folder);
      start_.id = checkpoint->id();
      if (newest) {
        check_unchanged_recipe(checkpoint->recipe());
        start_.metrics_bytes = checkpoint->json("run").at("metrics_bytes").get<int64_t>();
      }
    });
    start_.reader = std::move(checkpoint);
    if (!newest && !exports()) {
      begin_fork();
    } else {
      start_.notes.push_back(fmt::format("{} {}: stage {}, step {}",
                                         newest ? "continuing" : "exporting", start_.folder,
                                         start_.id.stage, start_.id.step));
    }
    return std::move(start_);
  }

 private:
  bool exports() const { return !options_.export_to.empty(); }

  // The same command again (a requeued job): the fork goes on.
  std::unique_ptr<OpenCheckpoint> open_same_fork(const std::string& newest) const {
    std::unique_ptr<OpenCheckpoint> checkpoint;
    world_.together("--from", [&] {
      checkpoint = checkpoints_.open_on_all(newest);
      if (is_same_checkpoint(checkpoint->json("run").at("forked_from"), options_.from)) return;
      throw std::runtime_error(fmt::format(
          "--from {} forks a new run, but {} already holds the checkpoint {}; choose another "
          "run.folder, or leave out --from to continue it",
          options_.from, recipe_.run.folder, newest));
    });
    return checkpoint;
  }

  // Metrics that tell of checkpoints, and no checkpoint: a disk that is not mounted, or a loss. Of
  // a fork, and not of which: it ended before a checkpoint of its own could say so.
  void refuse_lost_checkpoints() const {
    world_.together("", [&] {
      const std::string metrics = recipe_.run.folder + "/metrics.jsonl";
      if (world_.rank() != 0) return;
      if (options_.from.empty() && tells_of_fork(metrics)) {
        throw std::runtime_error(fmt::format(
            "{} tells of a fork that ended before its first checkpoint: give --from again, choose "
            "another run.folder, or delete metrics.jsonl to begin at the source",
            metrics));
      }
      if (!tells_of_checkpoints(metrics)) return;
      throw std::runtime_error(fmt::format(
          "{} tells of checkpoints, but {}/checkpoints holds none: restore them, choose another "
          "run.folder, or delete metrics.jsonl to begin anew here",
          metrics, recipe_.run.folder));
    });
  }

  void check_unchanged_recipe(const nlohmann::json& saved) const {
    const int64_t begun = start_.id.stage_index + (start_.id.step > 0 ? 1 : 0);
    const auto changes = recipe_changes(saved, record_, begun);
    if (changes.empty()) return;
    int64_t first_stage = changes[0].stage;
    for (const RecipeChange& change : changes) first_stage = std::min(first_stage, change.stage);
    const auto before = checkpoints_.last_boundary(first_stage);
    throw std::runtime_error(fmt::format(
        "the recipe changed in what {} was made with: {}; restore these values, or start another "
        "run.folder {}",
        start_.folder, changes_text(changes),
        before ? "with --from " + *before + ", the last checkpoint before the change"
               : "from the beginning: no checkpoint is older than the change"));
  }

  // At the recipe's place for it (trainer/start/fork.h).
  void begin_fork() {
    const CheckpointId saved = start_.id;
    const Beginning& begin = recipe_.begin;
    const std::string& stage = recipe_.stages[static_cast<size_t>(begin.stage)]->name;
    start_.id = {begin.stage, stage, begin.step, false};
    std::vector<std::string> behind;
    for (int64_t s = 0; s < begin.stage; ++s) {
      behind.push_back(recipe_.stages[static_cast<size_t>(s)]->name);
    }
    start_.notes.push_back(fmt::format(
        "forking {}: stage {}, step {}{}", start_.folder, stage, begin.step,
        behind.empty() ? "" : fmt::format("; it has {} behind it", fmt::join(behind, ", "))));
    if (saved.step == begin.step) return;
    start_.notes.push_back(fmt::format(
        "of the {} steps that it has made of stage {} the weights are taken over, the optimizer's "
        "state is not",
        saved.step, saved.stage));
  }

  const Recipe& recipe_;
  World& world_;
  Checkpoints& checkpoints_;
  const RunnerOptions& options_;
  const nlohmann::json& record_;
  Start start_;
};

}  // namespace

Start find_start(const Recipe& recipe, World& world, Checkpoints& checkpoints,
                 const RunnerOptions& options, const nlohmann::json& record) {
  return StartFinder(recipe, world, checkpoints, options, record)();
}

void check_before_start(Recipe& recipe, World& world, Start& start) {
  if (start.id.stage_index == static_cast<int64_t>(recipe.stages.size())) return;  // all is done
  const CheckDevice device = smallest_device(world);
  const auto ranks_per_node = static_cast<int64_t>(world.max(world.local_size()));
  std::vector<std::string> warnings;
  preflight_on_first(recipe, world,
                     {.device = device,
                      .num_ranks = world.size(),
                      .ranks_per_node = ranks_per_node,
                      .first_stage = start.id.stage_index,
                      .continues = start.continues,
                      .this_start = true},
                     warnings);
  for (const std::string& line : warnings) start.notes.push_back("warning: " + line);
}

void identify_inputs(Run& run, const Start& start) {
  const nlohmann::json none = nlohmann::json::object();
  const nlohmann::json saved =
      start.reader ? start.reader->json("run").value("inputs", none) : none;
  run.inputs = input_identity(run.recipe, run.world, *run.stores, saved);
  if (!start.continues || saved.empty()) return;
  const auto differences = input_differences(saved, run.inputs);
  if (differences.empty()) return;
  throw SharedError(fmt::format(
      "{} was made with other inputs; changed since: {}; restore them, or start another "
      "run.folder (--from a checkpoint takes over its weights)",
      start.folder, fmt::join(differences, "; ")));
}

}  // namespace sala
