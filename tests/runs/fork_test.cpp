// Runs that begin with another run's checkpoint, and exports outside the recipe.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/runs/toy_run.h"

namespace sala::test {

namespace {

const char* kConversion =
    "  - align: {tokens: 10240, row_length: 64, batch_tokens: 512, data: {a: 1, b: 2}, lr: 3e-3}\n"
    "  - score: {method: uniform}\n"
    "  - swap: {keep: 2}\n"
    "  - evaluate: {sources: [a], tokens: 1K, row_length: 128}\n";
const char* kTraining =
    "  - distill: {tokens: 10240, row_length: 128, batch_tokens: 512, data: {a: 1, b: 1}, "
    "lr: 2e-3}\n"
    "  - train: {tokens: 10240, row_length: 256, batch_tokens: 512, data: {b: 1}, lr: 1e-3}\n";

void replace_stages(const ToyRun& toy, const std::string& stages) {
  std::stringstream text;
  text << std::ifstream(toy.recipe()).rdbuf();
  const std::string kStages = "stages:\n";
  std::ofstream(toy.recipe()) << text.str().substr(0, text.str().find(kStages)) + kStages + stages;
}

}  // namespace

TEST(Fork, BeginsWithTheCheckpointAndGoesOnWhenStartedAgain) {
  ToyRun toy;
  ASSERT_EQ(toy.run("whole", 1), 0) << toy.log("whole");
  const std::string from = " --from " + toy.checkpoint_of("whole", "distill");
  const std::string change = " --set stages.train.lr=5e-4";
  ASSERT_EQ(toy.run("fork", 1, from + change), 0) << toy.log("fork");
  const auto whole = toy.events("whole", "step"), fork = toy.events("fork", "step");
  ASSERT_EQ(whole.size(), 60u);
  ASSERT_EQ(fork.size(), 40u);  // distill and train
  EXPECT_EQ(fork[0].at("loss"), whole[20].at("loss"));
  EXPECT_NE(fork[39].at("loss"), whole[59].at("loss"));
  EXPECT_EQ(toy.run("fork", 1, from + change), 0) << "the same command again has nothing to do";
  EXPECT_EQ(toy.run("fork", 1, from + "/" + change), 0) << toy.log("fork");  // the same checkpoint
  EXPECT_NE(toy.run("fork", 1, " --from " + toy.checkpoint_of("whole", "train")), 0);
  // What comes behind the stages that are done may be another stage.
  ASSERT_EQ(toy.run("other", 1, from + " --set stages.distill.name=other"), 0) << toy.log("other");
  EXPECT_EQ(toy.events("other", "step")[0].at("stage"), "other");
  // With other stages before it the run begins at the first, which must not convert again.
  EXPECT_NE(toy.run("again", 1, from + " --set stages.align.name=other"), 0);
  EXPECT_NE(toy.log("again").find("stages[0].align: align works on the full-attention model"),
            std::string::npos)
      << toy.log("again");
  EXPECT_NE(toy.run("none", 1, " --from " + toy.checkpoint_of("whole", "done")), 0);
  EXPECT_NE(toy.log("none").find("stages: all of them are behind"), std::string::npos)
      << toy.log("none");
}

TEST(Fork, OfAHybridTakesARecipeThatBeginsBehindTheSwap) {
  ToyRun toy({.stages = std::string(kConversion) + kTraining, .save_every = 0});
  ASSERT_EQ(toy.run("whole", 1), 0) << toy.log("whole");
  const auto whole = toy.events("whole", "step");
  // Called as the stage that followed the swap there, an evaluation.
  const std::string from = " --from " + toy.checkpoint_of("whole", "evaluate");
  replace_stages(toy, std::string(kTraining) +
                          "  - evaluate: {sources: [a], tokens: 1K, "
                          "row_length: 128}\n  - export: {folder: " +
                          toy.folder() + "/out}\n");
  EXPECT_EQ(toy.run("fork", 1, "--check"), 2);
  EXPECT_NE(toy.log("fork").find("stages[0].distill: distill needs the hybrid"), std::string::npos)
      << toy.log("fork");
  EXPECT_EQ(toy.run("fork", 1, "--check" + from), 0) << toy.log("fork");
  EXPECT_NE(toy.log("fork").find("hybrid: 2 sparse and 1 lightning layers"), std::string::npos);
  EXPECT_NE(toy.log("fork").find("00000000: stage distill, step 0"), std::string::npos);

  ASSERT_EQ(toy.run("fork", 1, from), 0) << toy.log("fork");
  const auto fork = toy.events("fork", "step");
  ASSERT_EQ(fork.size(), 40u);  // distill and train
  EXPECT_EQ(fork[0].at("loss"), whole[20].at("loss"));
  EXPECT_EQ(fork[39].at("loss"), whole[59].at("loss"));
  EXPECT_TRUE(std::filesystem::exists(toy.folder() + "/out/config.json"));
  // The run folder knows what it began with.
  std::filesystem::rename(toy.run_folder("whole"), toy.run_folder("elsewhere"));
  EXPECT_EQ(toy.run("fork", 1, from), 0) << toy.log("fork");
  EXPECT_EQ(toy.run("fork", 1), 0) << toy.log("fork");
  EXPECT_NE(toy.run("anew", 1, from), 0);
  EXPECT_NE(toy.log("anew").find("not a checkpoint"), std::string::npos) << toy.log("anew");
}

TEST(Fork, FromInsideAStageGoesOnThereOrLeavesTheOptimizerBehind) {
  ToyRun toy({.stages = "", .save_every = 8});
  ASSERT_EQ(toy.run("whole", 1), 0) << toy.log("whole");
  const std::string from = " --from " + toy.run_folder("whole") + "/checkpoints/04-train-00000016";
  ASSERT_EQ(toy.run("same", 1, from), 0) << toy.log("same");
  EXPECT_EQ(toy.events("same", "step").size(), 4u);
  EXPECT_EQ(toy.last_manifest("same").at("tensors"), toy.last_manifest("whole").at("tensors"));
  ASSERT_EQ(toy.run("other", 1, from + " --set stages.train.name=longer"), 0) << toy.log("other");
  EXPECT_EQ(toy.events("other", "step").size(), 20u);
  EXPECT_NE(toy.log("other").find("of the 16 steps that it has made of stage train"),
            std::string::npos)
      << toy.log("other");
}

TEST(Export, FromAnyCheckpointOfTheRun) {
  ToyRun toy;
  ASSERT_EQ(toy.run("run", 1), 0) << toy.log("run");
  const std::string folder = toy.folder() + "/after_distill";
  ASSERT_EQ(
      toy.run("run", 1, "--export " + folder + " --from " + toy.checkpoint_of("run", "train")), 0)
      << toy.log("run");
  EXPECT_TRUE(std::filesystem::exists(folder + "/model.safetensors"));
  EXPECT_TRUE(std::filesystem::exists(folder + "/config.json"));
}

// Its rows are counted anew, and so are the places of what a teacher said of them.
TEST(Fork, BeginsAStageAnewThatIsCalledLikeTheOneBehindIt) {
  ToyRun toy({.stages = std::string(kConversion) + kTraining, .save_every = 0});
  ASSERT_EQ(toy.run("whole", 1), 0) << toy.log("whole");
  replace_stages(toy, kTraining);
  const std::string arguments =
      " --from " + toy.checkpoint_of("whole", "train") +
      " --set stages.distill.topk=8 --set stages.distill.teacher_cache=" + toy.folder() + "/cache";
  ASSERT_EQ(toy.run("asks", 1, arguments), 0) << toy.log("asks");
  ASSERT_EQ(toy.run("reads", 1, arguments), 0) << toy.log("reads");
  EXPECT_EQ(toy.events("asks", "step"), toy.events("reads", "step"));
  EXPECT_EQ(toy.events("asks", "step").size(), 40u);
}

TEST(Fork, ThatEndedBeforeItsFirstCheckpointIsNotBegunAtTheSource) {
  ToyRun toy;
  std::filesystem::create_directories(toy.run_folder("fork"));
  std::ofstream(toy.run_folder("fork") + "/metrics.jsonl")
      << nlohmann::json{{"event", "fork"}, {"from", "elsewhere"}}.dump() << "\n";
  EXPECT_NE(toy.run("fork", 1), 0);
  EXPECT_NE(toy.log("fork").find("give --from again"), std::string::npos) << toy.log("fork");
}

}  // namespace sala::test
