// Every key of a recipe outside its stages, and how a recipe is read.
#include "trainer/recipe/recipe.h"

#include <stdexcept>

#include <fmt/format.h>

#include "trainer/recipe/field_reader.h"
#include "trainer/recipe/yaml_reader.h"

namespace sala {

namespace {

void describe_sparse(SparseConfig& sparse, Fields& fields) {
  fields.count("kernel_size", sparse.kernel_size, Need::kOptional,
               "Tokens averaged into one compressed key: twice kernel_stride.", {1, 1 << 20});
  fields.count("kernel_stride", sparse.kernel_stride, Need::kOptional,
               "Tokens from one compressed key to the next.", {1, 1 << 18});
  fields.count("init_blocks", sparse.init_blocks, Need::kOptional,
               "Leading blocks of a document that every query attends to.", {0, 1 << 20});
  fields.count("block_size", sparse.block_size, Need::kOptional,
               "Tokens in a block: four times kernel_stride.", {1, 1 << 20});
  fields.count("window_size", sparse.window_size, Need::kOptional,
               "Local window in tokens that every query attends to: a multiple of block_size.",
               {1, kMostRowTokens});
  fields.count("topk", sparse.topk, Need::kOptional,
               "Blocks chosen beyond the local window, the leading ones among them.", {1, 1 << 20});
  fields.count("dense_len", sparse.dense_len, Need::kOptional,
               "Documents shorter than this are attended to densely.");
}

}  // namespace

void RunOptions::describe(Fields& fields) {
  fields.path("folder", folder, Need::kRequired,
              "Where checkpoints, metrics.jsonl and the report go; made when it does not exist.");
  fields.count("seed", seed, Need::kOptional, "Seed of data order and of every random value.",
               {0, kMostTokens});
  fields.choice("device", device, {"auto", "cpu", "cuda"}, Need::kOptional,
                "auto: GPUs where there are any.");
  fields.choice("sharding", sharding, {"none", "zero1", "zero3"}, Need::kOptional,
                "What each rank holds of a model: none: all of it; zero1: its share of the masters "
                "and the optimizer's state; zero3: its share of everything, whole units only while "
                "they run.");
  fields.count(
      "shard_ranks", shard_ranks, Need::kOptional,
      "zero1, zero3: neighbouring ranks that share out one copy of the model; groups of them "
      "hold copies, whose gradients are summed once a step. With as many as a node has "
      "GPUs, weights travel inside nodes only. A divisor of the number of ranks; 0 = all.",
      {0, 1 << 16});
  fields.choice("kernels", kernels, {"auto", "strict"}, Need::kOptional,
                "On GPUs. auto: the fastest way that was measured for a call; where an op's own "
                "kernels do not take it, LibTorch calls do the same, many times slower, and the "
                "log warns. strict: that is an error, which says what the kernels need.");
  fields.flag(
      "deterministic", deterministic, Need::kOptional,
      "true: training gives the same bits when it is repeated. false: on GPUs dense "
      "attention may add gradients in any order: cuDNN where a micro-batch's documents have "
      "one length of 2K tokens or more, a multiple of 1K, a faster backward for others.");
  fields.count("keep_checkpoints", keep_checkpoints, Need::kOptional,
               "Newest checkpoints kept; the ones at stage boundaries are always kept.",
               {1, 1 << 20});
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
  fields.paths("files", files, Need::kRequired,
               "Token stores made by data/prepare: paths or globs, relative to the working "
               "folder.");
}

void DataOptions::describe(Fields& fields) {
  std::vector<std::string> names;
  for (const auto& [name, options] : sources) names.push_back(name);
  fields.named_sections(
      "sources", Need::kRequired, "Sources by name; stages mix them by these names.", names,
      [this](const std::string& name, Fields& inner) { sources[name].describe(inner); });
  fields.path("needles", needles, Need::kOptional,
              "Needle set made by data/prepare, for needle retrieval in evaluate; may be empty.");
  fields.paths("choices", choices, Need::kOptional,
               "Multiple-choice sets made by `data/prepare choices`; a set's name is its file's, "
               "without folder and ending.");
  fields.path("tasks", tasks, Need::kOptional,
              "Prompts made by `data/prepare ruler`, for tasks in evaluate; may be empty.");
  fields.count("lanes", lanes, Need::kOptional,
               "Documents read side by side: rows take turns, so that neighbours in a batch come "
               "from different documents.",
               {1, 1 << 20});
}

void Recipe::describe(Fields& fields) {
  fields.path("source", source, Need::kRequired,
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
                    // While reading, `index` counts elements of unknown type too.
                    const bool fresh = index >= stages.size();
                    if (fresh) {
                      stages.push_back(make_stage(type));
                      stages.back()->name = type;
                      stages.back()->path = fmt::format("stages[{}].{}", index, type);
                    }
                    Stage& stage = fresh ? *stages.back() : *stages[index];
                    inner.text("name", stage.name, Need::kOptional,
                               "Unique name, for folders, metrics and --set; the stage's type when "
                               "not given.");
                    stage.describe(inner);
                  });
}

LayerChoice Recipe::layer_choice() const {
  for (const auto& stage : stages) {
    if (const LayerChoice* choice = stage->layer_choice()) return *choice;
  }
  return {};
}

int64_t Recipe::num_kept() const {
  return begin.model ? static_cast<int64_t>(begin.kept.size()) : layer_choice().num_kept();
}

std::unique_ptr<Recipe> read_recipe(const std::string& path,
                                    const std::vector<std::string>& overrides,
                                    const std::function<Beginning(Recipe&)>& begin) {
  std::vector<YamlProblem> in_text;
  YamlNode root = read_yaml_file(path, in_text);
  if (root.kind == YamlNode::Kind::kNull) throw std::runtime_error(path + ": the recipe is empty");
  auto recipe = std::make_unique<Recipe>();
  recipe->path = path;
  RecipeProblems& problems = recipe->problems;
  problems.remember("", root.place);
  for (const YamlProblem& problem : in_text) problems.add_at(problem.place, "", problem.message);
  for (const std::string& assignment : overrides) {
    try {
      apply_override(root, assignment);
    } catch (const std::runtime_error& error) {
      problems.add_line(error.what());
    }
  }
  read_fields(root, "", problems, [&](Fields& fields) { recipe->describe(fields); });
  try {
    if (begin) recipe->begin = begin(*recipe);
  } catch (const std::runtime_error& error) {
    problems.add_line(error.what());
    recipe->begin.known = false;
  }
  recipe->check(problems);
  return recipe;
}

}  // namespace sala
