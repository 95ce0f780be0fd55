// The checks themselves: source, data, stages, folders, memory, disk.
#include "trainer/checks/preflight.h"

#include <filesystem>
#include <stdexcept>
#include <system_error>

#include <fmt/format.h>

#include "data/files/file_calls.h"
#include "data/needles.h"
#include "data/questions/choice_set.h"
#include "data/questions/task_set.h"
#include "data/source.h"
#include "model/weights/parts.h"
#include "trainer/checks/disk_room.h"
#include "trainer/checks/rank_count.h"
#include "trainer/checks/target_folder.h"
#include "trainer/folder/reader.h"
#include "trainer/planning/plan.h"
#include "trainer/recipe/amount_text.h"
#include "trainer/recipe/field_values.h"
#include "trainer/run.h"

namespace sala {

namespace {

namespace fs = std::filesystem;

class Preflight {
 public:
  Preflight(Recipe& recipe, const PreflightOptions& options, std::vector<std::string>& warnings)
      : recipe_(recipe), problems_(recipe.problems), options_(options), warnings_(warnings) {}

  std::optional<PlanContext> run() {
    if (problems_.knows("source")) check_source();
    if (problems_.knows("data.sources")) check_sources();
    if (problems_.knows("data.needles") && !recipe_.data.needles.empty()) check_needles();
    if (problems_.clean("data.choices")) check_choices();
    if (problems_.knows("data.tasks") && !recipe_.data.tasks.empty()) check_tasks();
    if (problems_.knows("run.folder")) check_run_folder();
    if (problems_.knows("run.shard_ranks")) check_groups();
    const auto size = static_cast<int64_t>(recipe_.stages.size());
    const int64_t count = std::min(size - options_.first_stage, options_.num_stages);
    for (int64_t s = options_.first_stage; s < options_.first_stage + count; ++s) {
      check_stage(s, *recipe_.stages[static_cast<size_t>(s)]);
    }
    if (context_ && options_.writes) check_disk();
    return std::move(context_);
  }

 private:
  // Runs `look`; what it throws is a problem of `key`.
  template <class Look>
  bool attempt(const std::string& key, const Look& look) {
    try {
      look();
      return true;
    } catch (const c10::Error& error) {
      problems_.add(key, error.what_without_backtrace());
    } catch (const std::exception& error) {
      problems_.add(key, error.what());
    }
    return false;
  }

  void check_source() {
    ModelConfig source;
    if (!attempt("source", [&] { source = read_model_config(recipe_.source); })) return;
    tokenizer_ = tokenizer_of(recipe_.source, source);
    if (!path_exists(recipe_.source + "/tokenizer.json")) {
      warnings_.push_back(fmt::format(
          "{} has no tokenizer.json: whether stores, needles and tasks fit it is not checked, and "
          "an export will have none",
          shown(recipe_.source)));
    }
    attempt("source", [&] { check_weights(recipe_.source, model_layouts(source)); });
    attempt("model", [&] {
      context_.emplace(PlanContext{recipe_,
                                   source,
                                   planned_hybrid(recipe_, source),
                                   options_.num_ranks,
                                   options_.device.cuda,
                                   0,
                                   {}});
    });
  }

  void check_groups() {
    const int64_t group = recipe_.run.shard_ranks, ranks = options_.num_ranks;
    if (group == 0 || ranks % group == 0) return;
    problems_.add("run.shard_ranks",
                  fmt::format("{} ranks do not split into groups of {}: start a multiple of {} "
                              "ranks, or use a divisor of {}",
                              ranks, group, group, ranks));
  }

  // Stores that an earlier start of this run has read are not opened again.
  void check_sources() {
    const std::string known = recipe_.run.folder + "/stores";
    if (options_.continues && is_folder(known)) catalog_ = StoreCatalog(known);
    for (const auto& [name, options] : recipe_.data.sources) {
      const std::string key = "data.sources." + name + ".files";
      if (!problems_.clean(key)) continue;
      std::vector<std::string> files;
      if (!attempt(key, [&] { files = expand_globs(options.files); })) continue;
      try {
        sources_.emplace(name, Source({name, files, 1.0}, tokenizer_, catalog_));
      } catch (const std::exception& error) {
        list_bad_stores(key, files, error.what());
      }
    }
    check_one_tokenizer();
  }

  // A source stops at its first bad store: here are the others too, the first few.
  void list_bad_stores(const std::string& key, const std::vector<std::string>& files,
                       const std::string& first_problem) {
    constexpr int kMostStores = 5;
    int found = 0;
    for (const std::string& file : files) {
      std::error_code none;
      if (found == kMostStores) break;
      if (fs::is_directory(file, none)) {
        problems_.add(key, fmt::format("{0} is a folder: name its stores, {0}/*.h5", shown(file)));
        ++found;
        continue;
      }
      found += !attempt(key, [&] { TokenStore(file, tokenizer_); });
    }
    if (found == 0) problems_.add(key, first_problem);  // of the stores together
  }

  // A source folder without a tokenizer has nothing to compare stores with but each other.
  void check_one_tokenizer() {
    for (const auto& [name, source] : sources_) {
      const Source& first = sources_.begin()->second;
      if (source.tokenizer_hash() == first.tokenizer_hash()) continue;
      problems_.add(
          "data.sources." + name + ".files",
          fmt::format("{} was made with another tokenizer than {}: run data/prepare again "
                      "with one tokenizer.json",
                      source.first_path(), first.first_path()));
    }
  }

  void check_needles() {
    attempt("data.needles", [&] { needles_.emplace(recipe_.data.needles, tokenizer_); });
  }

  void check_choices() {
    for (const std::string& path : recipe_.data.choices) {
      attempt("data.choices",
              [&] { choices_.emplace(choice_set_name(path), ChoiceSet(path, tokenizer_)); });
    }
    if (!context_) return;
    for (const auto& [name, set] : choices_) {
      context_->longest_choice = std::max(context_->longest_choice, set.longest_document());
    }
  }

  void check_tasks() {
    attempt("data.tasks", [&] { tasks_.emplace(recipe_.data.tasks, tokenizer_); });
    if (context_ && tasks_) context_->task_lengths = tasks_->lengths();
  }

  void check_run_folder() {
    if (!options_.writes) return;
    const std::string why_not = why_not_writable(recipe_.run.folder);
    if (!why_not.empty()) problems_.add("run.folder", why_not);
  }

  void check_stage(int64_t index, Stage& stage) {
    if (!problems_.clean(stage.path)) return;
    // An export that is under way may have made its folder already: the stage knows its own.
    const bool own_folder = options_.continues && index == options_.first_stage;
    const StageInputs inputs{recipe_,
                             context_ ? &*context_ : nullptr,
                             sources_,
                             needles_ ? &*needles_ : nullptr,
                             choices_,
                             tasks_ ? &*tasks_ : nullptr,
                             options_.writes && !own_folder};
    attempt(stage.path, [&] { stage.check_inputs(inputs, problems_); });
    const bool fits_ranks = check_ranks(index, stage);
    if (!context_) return;
    check_against_source(stage);
    if (fits_ranks && problems_.clean("model")) check_memory(stage);
  }

  bool check_ranks(int64_t index, const Stage& stage) {
    const auto problem = rank_problem(recipe_, stage, options_.num_ranks);
    if (!problem) return true;
    if (options_.this_start && index > options_.first_stage) {
      warnings_.push_back(fmt::format("stage {} cannot start on {} ranks: {}: {}", stage.name,
                                      options_.num_ranks, problem->key, problem->text));
    } else {
      problems_.add(problem->key, problem->text);
    }
    return false;
  }

  void check_against_source(const Stage& stage) {
    const ModelConfig& source = context_->source;
    if (stage.needs_full_source() && source.is_hybrid()) {
      problems_.add(
          stage.path,
          fmt::format("the source {} is a hybrid already; {} needs a full-attention model",
                      shown(recipe_.source), stage.type()));
    }
    const int64_t window = source.sliding_window;
    if (window > 0 && stage.longest_row() > window) {
      problems_.add(
          stage.path,
          fmt::format("rows of {} tokens, but {} attends only {} tokens back "
                      "(sliding_window) and is run here with full attention: use rows and "
                      "prompts of at most {} tokens",
                      stage.longest_row(), shown(recipe_.source), window, window));
    }
  }

  // Activations are an estimate, which may be too high by half, not by more.
  void check_memory(const Stage& stage) {
    const CheckDevice& device = options_.device;
    if (device.memory_bytes == 0) return;
    const StagePlan plan = stage.plan(*context_);
    const double sharing = device.cuda ? 1 : static_cast<double>(options_.ranks_per_node);
    const double needed = plan.memory_bytes() * sharing;
    if (needed <= device.memory_bytes) return;
    const std::string text =
        fmt::format("needs about {} of memory{}, but there are {}", bytes_text(needed),
                    device.cuda ? " per GPU" : " in this machine", bytes_text(device.memory_bytes));
    const double least = (plan.exact_bytes() + plan.activation_bytes / 2) * sharing;
    if (least > device.memory_bytes) {
      problems_.add(stage.path, text);
    } else {
      warnings_.push_back(fmt::format("stage {}: {}", stage.name, text));
    }
  }

  // A run that goes on has made some of its checkpoints, and its stage some of what it writes.
  void check_disk() {
    if (!problems_.clean("model")) return;
    std::vector<DiskNeed> needs;
    if (!options_.continues) needs = plan_checkpoints(*context_);
    for (DiskNeed& need :
         plan_stage_writes(*context_, options_.first_stage + (options_.continues ? 1 : 0))) {
      needs.push_back(std::move(need));
    }
    std::erase_if(needs, [&](const DiskNeed& need) { return !problems_.clean(need.key); });
    for (const DiskRoom& room : disk_rooms(needs)) {
      const double needed = room.needed_bytes();
      if (needed <= room.free_bytes) continue;
      problems_.add(room.needs.front().key,
                    fmt::format("the run needs about {} of disk, but {} are free there: {}",
                                bytes_text(needed), bytes_text(room.free_bytes), room.sum_text()));
    }
  }

  Recipe& recipe_;
  RecipeProblems& problems_;
  const PreflightOptions& options_;
  std::vector<std::string>& warnings_;
  TokenizerIdentity tokenizer_;
  std::optional<PlanContext> context_;
  StoreCatalog catalog_;
  std::map<std::string, Source> sources_;
  std::optional<NeedleSet> needles_;
  std::map<std::string, ChoiceSet> choices_;
  std::optional<TaskSet> tasks_;
};

}  // namespace

std::optional<PlanContext> preflight(Recipe& recipe, const PreflightOptions& options,
                                     std::vector<std::string>& warnings) {
  return Preflight(recipe, options, warnings).run();
}

}  // namespace sala
