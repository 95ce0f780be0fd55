// What only the whole recipe shows, without a look at any file: order and names of the stages, and
// that each has what it needs from those before it.
#include <algorithm>

#include <fmt/format.h>

#include "trainer/recipe/field_values.h"
#include "trainer/recipe/recipe.h"

namespace sala {

namespace {

using Stages = std::vector<std::unique_ptr<Stage>>;

std::string name_rule(const std::string& name) {
  return fmt::format("must be letters, digits, _ and -, a letter first, at most {}, but is '{}'",
                     kMostName, shown(name));
}

// "stages[2]" of "stages[2].distill".
std::string element_of(const std::string& path) { return path.substr(0, path.find('.')); }

void check_sparse(const SparseConfig& s, Problems& problems) {
  // The first of `keys` is the one that is wrong when the others are right.
  const auto require = [&](bool ok, const std::vector<std::string>& keys,
                           const std::string& message) {
    const bool known = std::all_of(keys.begin(), keys.end(), [&](const std::string& key) {
      return problems.knows("model.sparse." + key);
    });
    if (known && !ok) problems.add("model.sparse." + keys[0], message);
  };
  require(
      s.kernel_size == 2 * s.kernel_stride, {"kernel_size", "kernel_stride"},
      fmt::format("must be 2 * kernel_stride = {}, but is {}", 2 * s.kernel_stride, s.kernel_size));
  require(
      s.block_size == 4 * s.kernel_stride, {"block_size", "kernel_stride"},
      fmt::format("must be 4 * kernel_stride = {}, but is {}", 4 * s.kernel_stride, s.block_size));
  require(
      s.window_size % s.block_size == 0, {"window_size", "block_size"},
      fmt::format("must be a multiple of block_size {}, but is {}", s.block_size, s.window_size));
  require(s.topk > s.init_blocks, {"topk", "init_blocks"},
          fmt::format("must be more than init_blocks {}, but is {}", s.init_blocks, s.topk));
}

// The first stage of type `type` in [begin, end); stages.size() when there is none.
size_t find_stage(const Stages& stages, const std::string& type, size_t begin, size_t end) {
  for (size_t i = begin; i < end; ++i) {
    if (stages[i]->type() == type) return i;
  }
  return stages.size();
}

// Stages that train the model of the stage before them, or the source itself.
bool goes_on_training(const std::string& type) { return type == "train" || type == "sft"; }

// Which stages must not come before, or must come after, another one, where the run begins at stage
// `first` with a full-attention model. `all`: every stage of the list is of a type that we know, so
// that one which is not there is missing.
void check_order(const Stages& stages, size_t first, bool all, Problems& problems) {
  const size_t swap = find_stage(stages, "swap", first, stages.size());
  const bool swaps = swap < stages.size();
  const std::string swap_at = swaps ? element_of(stages[swap]->path) : "";
  for (size_t i = first; i < stages.size(); ++i) {
    const std::string type = stages[i]->type();
    const std::string& path = stages[i]->path;
    if (type == "swap" && i > swap) {
      problems.add(path, fmt::format("swap may come once, and {} is one already", swap_at));
    }
    if ((type == "align" || type == "score") && i > swap) {
      problems.add(path, fmt::format("{} must come before swap ({}): it works on the "
                                     "full-attention model",
                                     type, swap_at));
    }
    if (goes_on_training(type) && swaps && i < swap) {
      problems.add(path, fmt::format("{} must come after swap ({}), which builds the hybrid from "
                                     "the source and would drop what was trained",
                                     type, swap_at));
    }
    if (type == "distill" && i < swap && (swaps || all)) {
      problems.add(path, fmt::format("{} needs the hybrid: {}", type,
                                     swaps ? "move it behind swap"
                                           : "put a swap stage before it, or begin with a "
                                             "checkpoint that holds one (--from)"));
    }
    const bool made = i > swap || std::any_of(stages.begin() + first, stages.begin() + i,
                                              [](auto& s) { return goes_on_training(s->type()); });
    if (type == "export" && !made && (swaps || all)) {
      problems.add(path,
                   "export needs a model that was converted or trained: put it behind swap, train "
                   "or sft");
    }
  }
}

// The same where the run begins with a checkpoint that holds a hybrid, or the source trained
// further. A stage that it stands in goes on.
void check_order_behind(const Beginning& begin, const Stages& stages, Problems& problems) {
  const auto under_way = static_cast<size_t>(begin.stage + (begin.step > 0 ? 1 : 0));
  for (size_t i = under_way; i < stages.size(); ++i) {
    const std::string type = stages[i]->type();
    if (stages[i]->needs_full_source()) {
      problems.add(stages[i]->path,
                   fmt::format("{} works on the full-attention model, but the run begins at {} "
                               "with {}, which holds {}: leave it out, or fork from a checkpoint "
                               "before the swap",
                               type, element_of(stages[begin.stage]->path), begin.checkpoint,
                               begin.hybrid ? "the hybrid" : "the source trained further"));
    }
    if (type == "distill" && !begin.hybrid) {
      problems.add(stages[i]->path,
                   fmt::format("distill needs the hybrid, but {}, with which the run begins, "
                               "holds the source trained further",
                               begin.checkpoint));
    }
  }
}

// What a stage takes over must be made before it. (Where the one that makes it comes too late,
// check_order says so.)
void check_inheritance(const Beginning& begin, const Stages& stages, Problems& problems) {
  const auto first = static_cast<size_t>(begin.stage);
  const auto absent = [&](const char* type, size_t end) {
    return find_stage(stages, type, first, end) == stages.size();
  };
  for (size_t i = first; i < stages.size(); ++i) {
    const Stage& stage = *stages[i];
    if (!problems.clean(stage.path)) continue;
    const size_t end = stage.type() == "score" ? i : stages.size();
    if (stage.needs_mixers() && !begin.mixers && absent("align", end)) {
      problems.add(stage.path, fmt::format("{} needs aligned mixers: put an align stage before it",
                                           stage.type()));
    }
    if (stage.needs_scores() && !begin.scores && absent("score", stages.size())) {
      problems.add(stage.path + ".keep",
                   "`keep` chooses by score: put a score stage before it (method: uniform costs "
                   "nothing), or name the layers instead");
    }
  }
}

// Evaluations inside loops take their options from an evaluate stage.
void check_evaluations(const Stages& stages, Problems& problems) {
  if (find_stage(stages, "evaluate", 0, stages.size()) < stages.size()) return;
  for (const auto& stage : stages) {
    if (stage->evaluate_every > 0) {
      problems.add(stage->path + ".evaluate_every",
                   "needs an evaluate stage in the recipe, which says what to measure");
    }
  }
}

void check_names(const Stages& stages, Problems& problems) {
  std::map<std::string, const Stage*> seen;
  for (const auto& stage : stages) {
    const std::string key = stage->path + ".name";
    if (!is_plain_name(stage->name)) problems.add(key, name_rule(stage->name));
    const auto [first, fresh] = seen.emplace(stage->name, stage.get());
    if (!fresh) {
      problems.add(key, fmt::format("{} is called '{}' too: give each its own name",
                                    element_of(first->second->path), shown(stage->name)));
    }
  }
}

void check_stages(const Beginning& begin, const Stages& stages, bool all, Problems& problems) {
  if (!begin.checkpoint.empty() && begin.stage == static_cast<int64_t>(stages.size()) && all) {
    problems.add("stages", fmt::format("all of them are behind {}: name those to come after it",
                                       begin.checkpoint));
  }
  if (begin.model) {
    check_order_behind(begin, stages, problems);
  } else {
    check_order(stages, static_cast<size_t>(begin.stage), all, problems);
  }
}

}  // namespace

void Recipe::check(Problems& problems) const {
  check_sparse(model.sparse, problems);
  for (const auto& [name, options] : data.sources) {
    const std::string path = "data.sources." + name;
    if (!is_plain_name(name)) problems.add("data.sources." + shown(name), name_rule(name));
    if (options.files.empty()) problems.add(path + ".files", "names no file");
  }
  if (problems.knows("run.shard_ranks") && problems.knows("run.sharding") && run.shard_ranks > 0 &&
      run.sharding == "none") {
    problems.add("run.shard_ranks",
                 "with sharding: none every rank holds all: leave it out, or "
                 "choose zero1 or zero3");
  }
  if (problems.knows("run.shard_ranks") && run.shard_ranks == 1) {
    problems.add("run.shard_ranks",
                 "groups of one rank would hold all of the model: that is sharding: none");
  }
  if (!problems.knows("stages")) return;
  const bool all = problems.knows("stages[*]");
  if (stages.empty() && all) {
    problems.add("stages", "there is no stage: a recipe needs at least one");
  }
  check_names(stages, problems);
  if (begin.known) check_stages(begin, stages, all, problems);
  for (const auto& stage : stages) stage->check(*this, stage->path, problems);
  if (!all) return;
  check_evaluations(stages, problems);
  if (begin.known) check_inheritance(begin, stages, problems);
}

}  // namespace sala
