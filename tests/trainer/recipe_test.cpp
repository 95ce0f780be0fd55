// The recipe: what it reads, how it prints itself, and that the page about it and the recipes that
// we ship are right.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <sstream>

#include "tests/trainer/recipe_cases.h"
#include "trainer/journal/recipe_record.h"
#include "trainer/recipe/stage_options.h"

namespace sala {
namespace {

using recipe_cases::complaint;
using recipe_cases::edited;
using recipe_cases::kGood;
using recipe_cases::shipped_recipes;
using recipe_cases::TemporaryFolder;

std::string printed_with(const TemporaryFolder& folder, const std::vector<std::string>& overrides) {
  return resolved_yaml(*read_recipe(folder.write("recipe.yaml", kGood), overrides));
}

TEST(Recipe, ReadsWhatTheFileSays) {
  TemporaryFolder folder;
  const auto recipe = read_recipe(folder.write("recipe.yaml", kGood));
  EXPECT_EQ(recipe->source, "model");
  EXPECT_EQ(recipe->run.seed, 3);
  EXPECT_EQ(recipe->run.device, "auto");
  EXPECT_EQ(recipe->data.sources.at("web").files, std::vector<std::string>{"web.h5"});
  EXPECT_EQ(recipe->data.sources.at("books").files.size(), 2u);
  EXPECT_EQ(recipe->num_kept(), 2);
  std::vector<std::string> names;
  for (const auto& stage : recipe->stages) names.push_back(stage->name);
  EXPECT_EQ(names,
            (std::vector<std::string>{"align", "score", "swap", "distill", "train", "export"}));
  EXPECT_EQ(recipe->stages[3]->num_steps(), 10);  // 20K tokens in steps of 2K
}

TEST(Recipe, UnitsAre1024Based) {
  TemporaryFolder folder;
  const auto recipe = read_recipe(folder.write("recipe.yaml", kGood), {"run.seed=3M"});
  EXPECT_EQ(recipe->run.seed, 3 * 1024 * 1024);
  EXPECT_NE(resolved_yaml(*recipe).find("seed: 3M\n"), std::string::npos);
}

TEST(Recipe, ResolvedTextReadsBackToItself) {
  TemporaryFolder folder;
  std::vector<std::string> files = shipped_recipes();
  files.push_back(folder.write("good.yaml", kGood));
  const std::string odd = edited(kGood, "source: model", "source: \"a: b #\\\"1\"");
  files.push_back(folder.write("odd.yaml", odd));
  for (const std::string& file : files) {
    const std::string once = resolved_yaml(*read_recipe(file));
    const std::string twice = resolved_yaml(*read_recipe(folder.write("again.yaml", once)));
    EXPECT_EQ(once, twice) << file;
    EXPECT_NE(once.find("beta2: 0.95"), std::string::npos) << "defaults are filled in: " << file;
  }
}

TEST(Recipe, OverridesReachEveryKindOfKey) {
  TemporaryFolder folder;
  for (const auto& [assignment, line] : std::vector<std::pair<std::string, std::string>>{
           {"run.folder=elsewhere", "\n  folder: elsewhere\n"},
           {"model.sparse.topk=8", "\n    topk: 8\n"},
           {"data.sources.web.files=[a.h5, b.h5]", "\n      files: [a.h5, b.h5]\n"},
           {"stages.distill.tokens=40K", "\n      tokens: 40K\n"},
           {"stages[3].distill.tokens=40K", "\n      tokens: 40K\n"},
           {"stages.3.tokens=40K", "\n      tokens: 40K\n"},
           {"stages.distill.rules[0].lr_scale=7", "\n          lr_scale: 7\n"},
           {"stages.swap.force_ends=false", "\n      force_ends: false\n"},
           {"stages.train.lr=2e-5", "\n      lr: 2e-05\n"},
           {"stages.train.name=last", "\n      name: last\n"}}) {
    EXPECT_EQ(printed_with(folder, {}).find(line), std::string::npos) << assignment;
    EXPECT_NE(printed_with(folder, {assignment}).find(line), std::string::npos) << assignment;
  }
}

TEST(Recipe, HomeFolderAndSignsAreUnderstood) {
  TemporaryFolder folder;
  const char* home = std::getenv("HOME");
  ASSERT_NE(home, nullptr);
  std::string text = edited(kGood, "folder: run,", "folder: ~/run,");
  text = edited(text, "files: web.h5", "files: [~/web.h5, 'b ~.h5']");
  text = edited(text, "lr: 1e-4", "lr: +1e-4");
  const auto recipe = read_recipe(folder.write("recipe.yaml", text));
  EXPECT_EQ(recipe->problems.text(), "");
  EXPECT_EQ(recipe->run.folder, std::string(home) + "/run");
  EXPECT_EQ(recipe->data.sources.at("web").files,
            (std::vector<std::string>{std::string(home) + "/web.h5", "b ~.h5"}));
}

TEST(Recipe, AnchorsCarryOptionsFromStageToStage) {
  TemporaryFolder folder;
  std::string text = edited(kGood, "  - train:\n", "  - train: &base\n");
  text += "  - train: {<<: *base, name: second, tokens: 64K}\n";
  const std::string printed = resolved_yaml(*read_recipe(folder.write("recipe.yaml", text)));
  const size_t second = printed.find("name: second\n");
  ASSERT_NE(second, std::string::npos);
  EXPECT_NE(printed.find("tokens: 64K\n", second), std::string::npos);
  EXPECT_NE(printed.find("schedule: wsd\n", second), std::string::npos);
  EXPECT_NE(complaint(folder, edited(kGood, "seed: 3", "seed: &a [*a]")), "");
}

TEST(Recipe, EveryKeyIsDocumentedInThePageAboutRecipes) {
  std::ifstream file(std::string(SALA_SOURCE_DIR) + "/recipes/README.md");
  std::stringstream page;
  page << file.rdbuf();
  EXPECT_NE(page.str().find(recipe_keys_markdown()), std::string::npos)
      << "recipes/README.md must hold what `sala-train --keys` prints";
  for (const KeyDoc& key : recipe_keys()) {
    EXPECT_FALSE(key.help.empty()) << key.path;
    EXPECT_TRUE(!key.kind.starts_with("count") || key.kind.find(" to ") != std::string::npos);
  }
}

// The complaints of a recipe whose run begins with `begin`.
std::string complaint_with(const TemporaryFolder& folder, const std::string& text,
                           const Beginning& begin) {
  const auto recipe =
      read_recipe(folder.write("fork.yaml", text), {}, [&](Recipe&) { return begin; });
  return recipe->problems.text();
}

TEST(Recipe, WhatACheckpointBringsNeedNotBeMade) {
  TemporaryFolder folder;
  Beginning hybrid{.checkpoint = "old", .model = true, .hybrid = true, .kept = {0, 2}};
  const size_t align = kGood.find("  - align"), distill = kGood.find("  - distill");
  const std::string rest = kGood.substr(0, align) + kGood.substr(distill);
  EXPECT_NE(complaint_with(folder, rest, {}), "");
  EXPECT_EQ(complaint_with(folder, rest, hybrid), "");
  // A hybrid is not converted again, unless its stages are behind the checkpoint.
  const std::string again = complaint_with(folder, kGood, hybrid);
  for (const char* stage : {"[0].align: align", "[1].score: score", "[2].swap: swap"}) {
    EXPECT_NE(again.find(stage + std::string(" works on the full-attention model, but the run "
                                             "begins at stages[0] with old, which holds the "
                                             "hybrid")),
              std::string::npos)
        << again;
  }
  hybrid.stage = 3;
  EXPECT_EQ(complaint_with(folder, kGood, hybrid), "");
  hybrid.stage = 6;
  EXPECT_NE(complaint_with(folder, kGood, hybrid).find("stages: all of them are behind old"),
            std::string::npos);
  // The source trained further is no hybrid to distil.
  const Beginning trained{.checkpoint = "old", .model = true, .kept = {}};
  EXPECT_NE(complaint_with(folder, rest, trained).find("distill needs the hybrid, but old"),
            std::string::npos);
  // Mixers and scores that an align and a score stage left.
  const std::string swaps = kGood.substr(0, align) + kGood.substr(kGood.find("  - swap"));
  const Beginning scored{.checkpoint = "old", .mixers = true, .scores = true, .kept = {}};
  const Beginning aligned{.checkpoint = "old", .mixers = true, .kept = {}};
  EXPECT_EQ(complaint_with(folder, swaps, scored), "");
  EXPECT_NE(complaint_with(folder, swaps, aligned).find("`keep`"), std::string::npos);
}

TEST(Schedule, WarmsUpThenFollowsItsKind) {
  Schedule schedule;
  schedule.lr = 1.0;
  schedule.end_lr = 0.1;
  schedule.warmup_steps = 4;
  for (const char* kind : {"constant", "cosine", "exponential", "wsd"}) {
    schedule.kind = kind;
    EXPECT_DOUBLE_EQ(schedule.at(0, 104), 0.25) << kind;
    EXPECT_DOUBLE_EQ(schedule.at(3, 104), 1.0) << kind;
    EXPECT_DOUBLE_EQ(schedule.at(4, 104), 1.0) << kind;
    EXPECT_NEAR(schedule.at(104, 104), schedule.kind == "constant" ? 1.0 : 0.1, 1e-12) << kind;
    for (int64_t step = 4; step < 104; ++step) {
      EXPECT_GE(schedule.at(step, 104), schedule.at(step + 1, 104)) << kind << " " << step;
    }
  }
  schedule.kind = "cosine";
  EXPECT_NEAR(schedule.at(54, 104), 0.55, 1e-12);
  schedule.kind = "exponential";
  EXPECT_NEAR(schedule.at(54, 104), std::sqrt(0.1), 1e-12);
  schedule.kind = "wsd";
  schedule.decay_frac = 0.25;
  EXPECT_DOUBLE_EQ(schedule.at(78, 104), 1.0);
  EXPECT_NEAR(schedule.at(91, 104), 0.55, 1e-12);
}

TEST(Schedule, WarmsUpByAShareOfTheStepsUnlessTold) {
  Schedule schedule;
  schedule.lr = 1.0;
  EXPECT_EQ(schedule.num_warmup(200), 10);
  EXPECT_EQ(schedule.num_warmup(4), 1);
  EXPECT_DOUBLE_EQ(schedule.at(0, 200), 0.1);
  schedule.warmup_steps = 2;
  EXPECT_EQ(schedule.num_warmup(200), 2);
  schedule.warmup_steps = 0;
  schedule.warmup_frac = 0;
  EXPECT_DOUBLE_EQ(schedule.at(0, 200), 1.0);
}

TEST(Schedule, TheSafeRateFollowsHalosTable) {
  EXPECT_NEAR(safe_lr(1'700'000'000), 1e-4, 1e-6);
  EXPECT_NEAR(safe_lr(4'000'000'000), 5e-5, 1e-6);
  EXPECT_DOUBLE_EQ(safe_lr(3'000'000), 1e-3);
  EXPECT_NEAR(safe_lr(8'000'000'000), 3e-5, 2e-6);
}

// What only moves memory or files may change between two starts; a source that is called like such
// a key has a weight like any other.
TEST(RecipeRecord, OnlyAStagesOwnKeysAreFree) {
  const auto changes = [](const std::string& path) {
    return recipe_changes({{path, "1"}}, {{path, "2"}}, 9).size();
  };
  for (const char* free : {"run.sharding", "data.sources.web.files", "stages[2].train.context",
                           "stages[2].train.recompute", "stages[3].export.folder",
                           "stages[2].distill.teacher_cache", "stages[2].train.save_every"}) {
    EXPECT_EQ(changes(free), 0u) << free;
  }
  for (const char* kept : {"run.seed", "stages[2].train.lr", "stages[2].train.data.context",
                           "stages[2].train.data.recompute", "stages[2].train.rules[0].freeze"}) {
    EXPECT_EQ(changes(kept), 1u) << kept;
  }
}

TEST(RecipeRecord, AKeyThatWasNotThereYetHadItsDefault) {
  const std::string share = "stages[3].distill.ce_weight", lr = "stages[3].distill.lr";
  const nlohmann::json old = {{lr, "0.001"}};
  EXPECT_TRUE(recipe_changes(old, {{lr, "0.001"}, {share, "0"}}, 9).empty());
  const auto changes = recipe_changes(old, {{lr, "0.001"}, {share, "0.5"}}, 9);
  ASSERT_EQ(changes.size(), 1u);
  EXPECT_EQ(changes[0].text, share + ": 0 -> 0.5");
  EXPECT_EQ(recipe_changes(old, {{lr, "0.001"}, {"stages[3].distill.data.web", "1"}}, 9).size(),
            1u);
}

TEST(Optimizer, TheFirstRuleThatMatchesHolds) {
  OptimizerOptions options;
  options.rules = {{"layers\\.0\\..*q_proj", 2.0, true}, {"self_attn", 3.0, false}};
  EXPECT_TRUE(options.rule_for("model.layers.0.self_attn.q_proj.weight").freeze);
  EXPECT_EQ(options.rule_for("model.layers.1.self_attn.q_proj.weight").lr_scale, 3.0);
  EXPECT_EQ(options.rule_for("model.layers.1.mlp.up_proj.weight").lr_scale, 1.0);
}

TEST(TokenBudget, RoundsUpToWholeSteps) {
  TokenBudget budget;
  budget.tokens = 20 * 1024 + 1;
  budget.row_length = 1024;
  budget.batch_tokens = 4096;
  EXPECT_EQ(budget.rows_per_step(), 4);
  EXPECT_EQ(budget.num_steps(), 6);
  EXPECT_EQ(budget.micro_rows(), 4);  // at most what a step has
  budget.micro_tokens = 2048;
  EXPECT_EQ(budget.micro_rows(), 2);
}

}  // namespace
}  // namespace sala
