// Every key of a recipe outside its stages, and what only the whole recipe can check.
#include "trainer/recipe.h"

#include <algorithm>
#include <regex>
#include <stdexcept>

#include <fmt/format.h>

#include "trainer/field_reader.h"
#include "trainer/yaml_reader.h"

namespace sala {

namespace {

// Names become folder names and parts of --set keys.
bool is_plain_name(const std::string& name) {
  static const std::regex kName("[A-Za-z_][A-Za-z0-9_-]*");
  return std::regex_match(name, kName);
}

constexpr const char* kNameRule = "must be letters, digits, _ and -, a letter first, but is '{}'";

void describe_sparse(SparseConfig& sparse, Fields& fields) {
  fields.count("kernel_size", sparse.kernel_size, Need::kOptional,
               "Tokens averaged into one compressed key: twice kernel_stride.");
  fields.count("kernel_stride", sparse.kernel_stride, Need::kOptional,
               "Tokens from one compressed key to the next.");
  fields.count("init_blocks", sparse.init_blocks, Need::kOptional,
               "Leading blocks of a document that every query attends to.");
  fields.count("block_size", sparse.block_size, Need::kOptional,
               "Tokens in a block: four times kernel_stride.");
  fields.count("window_size", sparse.window_size, Need::kOptional,
               "Local window in tokens that every query attends to: a multiple of block_size.");
  fields.count("topk", sparse.topk, Need::kOptional,
               "Blocks chosen beyond the local window, the leading ones among them.");
  fields.count("dense_len", sparse.dense_len, Need::kOptional,
               "Documents shorter than this are attended to densely.");
}

void check_sparse(const SparseConfig& s, Problems& problems) {
  const auto require = [&](bool ok, const char* key, const std::string& message) {
    if (!ok) problems.add(std::string("model.sparse.") + key, message);
  };
  require(s.kernel_stride > 0, "kernel_stride", "must be at least 1");
  require(
      s.kernel_size == 2 * s.kernel_stride, "kernel_size",
      fmt::format("must be 2 * kernel_stride = {}, but is {}", 2 * s.kernel_stride, s.kernel_size));
  require(
      s.block_size == 4 * s.kernel_stride, "block_size",
      fmt::format("must be 4 * kernel_stride = {}, but is {}", 4 * s.kernel_stride, s.block_size));
  require(
      s.window_size > 0 && s.block_size > 0 && s.window_size % s.block_size == 0, "window_size",
      fmt::format("must be a multiple of block_size {}, but is {}", s.block_size, s.window_size));
  require(s.topk > s.init_blocks, "topk",
          fmt::format("must be more than init_blocks {}, but is {}", s.init_blocks, s.topk));
}

// Which stages must not come before, or must come after, another one.
void check_order(const std::vector<std::unique_ptr<Stage>>& stages, Problems& problems) {
  size_t num_swaps = 0;
  size_t swap = stages.size();
  for (size_t i = 0; i < stages.size(); ++i) {
    if (stages[i]->type() != "swap") continue;
    if (num_swaps++ == 0) swap = i;
    if (num_swaps > 1) {
      problems.add(fmt::format("stages[{}].swap", i),
                   fmt::format("swap may come once, and stages[{}] is one already", swap));
    }
  }
  bool trained = false;
  for (size_t i = 0; i < stages.size(); ++i) {
    const std::string type = stages[i]->type();
    const std::string path = fmt::format("stages[{}].{}", i, type);
    if ((type == "align" || type == "score") && i > swap) {
      problems.add(path, fmt::format("{} must come before swap (stages[{}]): it works on the "
                                     "full-attention model",
                                     type, swap));
    }
    trained = trained || type == "swap" || type == "train";
    if (type == "export" && !trained) {
      problems.add(path,
                   "export needs a model that was converted or trained: put it behind swap or "
                   "train");
    }
    if (type == "distill" && i < swap) {
      problems.add(
          path, fmt::format("{} needs the hybrid: {}", type,
                            num_swaps > 0 ? "move it behind swap" : "put a swap stage before it"));
    }
  }
}

// Evaluations inside loops take their options from an evaluate stage.
void check_evaluations(const std::vector<std::unique_ptr<Stage>>& stages, Problems& problems) {
  for (const auto& stage : stages) {
    if (stage->type() == "evaluate") return;
  }
  for (size_t i = 0; i < stages.size(); ++i) {
    if (stages[i]->evaluate_every > 0) {
      problems.add(fmt::format("stages[{}].{}.evaluate_every", i, stages[i]->type()),
                   "needs an evaluate stage in the recipe, which says what to measure");
    }
  }
}

void check_names(const std::vector<std::unique_ptr<Stage>>& stages, Problems& problems) {
  std::map<std::string, size_t> seen;
  for (size_t i = 0; i < stages.size(); ++i) {
    const std::string path = fmt::format("stages[{}].{}.name", i, stages[i]->type());
    if (!is_plain_name(stages[i]->name)) {
      problems.add(path, fmt::format(kNameRule, stages[i]->name));
    }
    const auto [first, fresh] = seen.emplace(stages[i]->name, i);
    if (!fresh) {
      problems.add(path, fmt::format("stages[{}] is called '{}' too: give each its own name",
                                     first->second, stages[i]->name));
    }
  }
}

}  // namespace

void RunOptions::describe(Fields& fields) {
  fields.text("folder", folder, Need::kRequired,
              "Where checkpoints, metrics.jsonl and the report go; made when it does not exist.");
  fields.count("seed", seed, Need::kOptional, "Seed of data order and of every random value.");
  fields.choice("device", device, {"auto", "cpu", "cuda"}, Need::kOptional,
                "auto: GPUs where there are any.");
  fields.count("keep_checkpoints", keep_checkpoints, Need::kOptional,
               "Newest checkpoints kept; the ones at stage boundaries are always kept.");
}

void ModelOptions::describe(Fields& fields) {
  fields.choice("qk_norm", qk_norm, {"drop", "keep"}, Need::kOptional,
                "Kept layers of a source with QK-norm (Qwen3): drop the norms, or keep them, which "
                "the export format cannot say.");
  fields.section("sparse", Need::kOptional,
                 "Block-sparse attention (InfLLM-V2) of the kept layers.",
                 [this](Fields& inner) { describe_sparse(sparse, inner); });
}

void SourceOptions::describe(Fields& fields) {
  fields.texts("files", files, Need::kRequired,
               "Token stores made by data/prepare: paths or globs, relative to the working "
               "folder.");
}

void DataOptions::describe(Fields& fields) {
  std::vector<std::string> names;
  for (const auto& [name, options] : sources) names.push_back(name);
  fields.named_sections(
      "sources", Need::kRequired, "Sources by name; stages mix them by these names.", names,
      [this](const std::string& name, Fields& inner) { sources[name].describe(inner); });
  fields.text("needles", needles, Need::kOptional,
              "Needle set made by data/prepare, for needle retrieval in evaluate; may be empty.");
  fields.count("lanes", lanes, Need::kOptional,
               "Documents read side by side: rows take turns, so that neighbours in a batch come "
               "from different documents.");
}

void Recipe::describe(Fields& fields) {
  fields.text("source", source, Need::kRequired,
              "Folder of the full-attention model, in Hugging Face form.");
  fields.section("run", Need::kRequired, "The run as a whole.",
                 [this](Fields& inner) { run.describe(inner); });
  fields.section("model", Need::kOptional, "What the hybrid's layers are made of.",
                 [this](Fields& inner) { model.describe(inner); });
  fields.section("data", Need::kOptional, "Token stores and other prepared data.",
                 [this](Fields& inner) { data.describe(inner); });
  std::vector<std::string> current;
  for (const auto& stage : stages) current.push_back(stage->type());
  fields.variants("stages", Need::kRequired, "What the run does, in this order.", stage_types(),
                  current, [this](size_t index, const std::string& type, Fields& inner) {
                    if (index >= stages.size()) {
                      stages.push_back(make_stage(type));
                      stages.back()->name = type;
                    }
                    inner.text("name", stages[index]->name, Need::kOptional,
                               "Unique name, for folders, metrics and --set; the stage's type when "
                               "not given.");
                    stages[index]->describe(inner);
                  });
}

void Recipe::check(Problems& problems,
                   const std::function<bool(const std::string&)>& readable) const {
  if (run.keep_checkpoints < 1) problems.add("run.keep_checkpoints", "must be at least 1");
  if (data.lanes < 1) problems.add("data.lanes", "must be at least 1");
  check_sparse(model.sparse, problems);
  for (const auto& [name, options] : data.sources) {
    const std::string path = "data.sources." + name;
    if (!is_plain_name(name)) problems.add(path, fmt::format(kNameRule, name));
    if (options.files.empty()) problems.add(path + ".files", "names no file");
  }
  if (!readable("stages")) return;
  if (stages.empty()) problems.add("stages", "there is no stage: a recipe needs at least one");
  check_names(stages, problems);
  check_order(stages, problems);
  check_evaluations(stages, problems);
  for (size_t i = 0; i < stages.size(); ++i) {
    const std::string path = fmt::format("stages[{}].{}", i, stages[i]->type());
    if (readable(path)) stages[i]->check(*this, path, problems);
  }
}

int64_t Recipe::num_kept() const {
  for (const auto& stage : stages) {
    if (stage->num_kept() > 0) return stage->num_kept();
  }
  return 0;
}

std::unique_ptr<Recipe> read_recipe(const std::string& path,
                                    const std::vector<std::string>& overrides) {
  std::vector<YamlProblem> in_text;
  YamlNode root = read_yaml_file(path, in_text);
  if (root.kind == YamlNode::Kind::kNull) throw std::runtime_error(path + ": the recipe is empty");
  RecipeProblems problems;
  problems.remember("", root.place);
  for (const YamlProblem& problem : in_text) problems.add_at(problem.place, "", problem.message);
  for (const std::string& assignment : overrides) {
    try {
      apply_override(root, assignment);
    } catch (const std::runtime_error& error) {
      problems.add_line(error.what());
    }
  }
  auto recipe = std::make_unique<Recipe>();
  recipe->path = path;
  read_fields(root, "", problems, [&](Fields& fields) { recipe->describe(fields); });
  // Arithmetic over values that could not be read would only add noise.
  const RecipeProblems reading = problems;
  const YamlNode* stages = root.find("stages");
  const bool all_stages = stages != nullptr && stages->items.size() == recipe->stages.size();
  recipe->check(problems, [&](const std::string& key) {
    return key == "stages" ? all_stages : !reading.any_below(key) && !reading.any_below("data");
  });
  if (!problems.empty()) throw std::runtime_error(problems.text());
  return recipe;
}

}  // namespace sala
