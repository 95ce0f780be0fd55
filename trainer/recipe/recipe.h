// The recipe: everything a run does, in one YAML file. Reading is strict: all errors at once, each
// with file:line:column. Nothing reads YAML, environment or argv after this.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "trainer/recipe/beginning.h"
#include "trainer/recipe/fields.h"
#include "trainer/recipe/layer_choice.h"
#include "trainer/recipe/problems.h"
#include "trainer/stage.h"

namespace sala {

struct RunOptions {
  std::string folder;  // checkpoints, metrics.jsonl, report; created
  int64_t seed = 1;
  std::string device = "auto";    // auto | cpu | cuda
  std::string sharding = "none";  // none | zero1 | zero3 (trainer/parameters.h)
  int64_t shard_ranks = 0;  // that share out one copy of the model; 0 = all (World::shard_comms)
  std::string kernels = "auto";  // auto | strict (kernels/paths.h)
  bool deterministic = true;     // kernels/paths.h
  int64_t keep_checkpoints = 2;  // newest ones kept besides every stage boundary
  void describe(Fields& fields);
};

// What the hybrid's layers are made of.
struct ModelOptions {
  std::string qk_norm = "drop";  // drop | keep: kept layers of a QK-norm source
  SparseConfig sparse;
  void describe(Fields& fields);
};

struct SourceOptions {
  std::vector<std::string> files;  // token stores; globs allowed
  void describe(Fields& fields);
};

struct DataOptions {
  std::map<std::string, SourceOptions> sources;
  std::string needles;               // needle set for evaluation; may be empty
  std::vector<std::string> choices;  // multiple-choice sets; a file's name is the set's
  std::string tasks;                 // prompts answered by generation; may be empty
  int64_t lanes = 64;                // documents read side by side (data/loader.h)
  void describe(Fields& fields);
};

struct Recipe {
  std::string path;    // the YAML file
  std::string source;  // folder of the full-attention model
  RunOptions run;
  ModelOptions model;
  DataOptions data;
  std::vector<std::unique_ptr<Stage>> stages;
  Beginning begin;          // no key of the file: what the stages find
  RecipeProblems problems;  // found so far, and where each key stands
  void describe(Fields& fields);
  // Order and names of stages, and each stage's own arithmetic.
  void check(Problems& problems) const;
  LayerChoice layer_choice() const;  // of the swap stage; without one nothing is kept
  int64_t num_kept() const;  // sparse layers of the hybrid (swap stage, checkpoint); 0 without one
};

// `overrides`: "key.path=value" (stages by index or name: "stages.distill.tokens=8M").
// Every mistake becomes one of the recipe's problems; what could not be read has its default.
// Throws std::runtime_error where there is no YAML to begin with. `begin`: asked, once the keys are
// read, what the stages find; what it throws is a problem too. Without it: the source alone.
std::unique_ptr<Recipe> read_recipe(const std::string& path,
                                    const std::vector<std::string>& overrides = {},
                                    const std::function<Beginning(Recipe&)>& begin = nullptr);
// The recipe with every default filled in, as YAML that read_recipe reads back to the same recipe.
std::string resolved_yaml(Recipe& recipe);
// Every value by its path ("stages[2].distill.tokens"), as YAML text.
std::vector<std::pair<std::string, std::string>> recipe_values(Recipe& recipe);

struct KeyDoc {
  std::string path;      // "run.seed", "stages[].align.tokens"
  std::string kind;      // count, number, flag, text, choice, …
  std::string fallback;  // default as YAML, or "required"
  std::string help;
};
std::vector<KeyDoc> recipe_keys();  // every key that exists, in order
// The same as Markdown, a table for each section and stage type: recipes/README.md holds this text.
std::string recipe_keys_markdown();

}  // namespace sala
