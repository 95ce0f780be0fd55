// A run that goes on with fewer ranks than one of its stages takes.
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/runs/toy_run.h"

namespace sala::test {

namespace {

namespace fs = std::filesystem;

// Two stages; ranks share the rows of the second, and of the evaluations.
const char* kTwo =
    "  - train: {tokens: 1K, row_length: 64, batch_tokens: 512, data: {a: 1}, lr: 1e-3}\n"
    "  - train: {name: long, tokens: 1K, row_length: 128, batch_tokens: 512, data: {a: 1}, lr: "
    "1e-3, context: 2}\n"
    "  - evaluate: {sources: [a], tokens: 256, row_length: 64, context: 2}\n";

}  // namespace

TEST(FewerRanks, AStageThatTheyCannotRunIsWarnedOfAndEndsTheRunWithItsCheckpoint) {
  const ToyRun toy({.stages = kTwo, .save_every = 0});
  EXPECT_EQ(toy.run("checked", 1, "--check --ranks 3"), 2);
  const std::string why = "3 ranks cannot share sequences by 2: start a multiple of 2 ranks";
  EXPECT_NE(toy.log("checked").find("problem: "), std::string::npos) << toy.log("checked");
  EXPECT_NE(toy.log("checked").find(why), std::string::npos) << toy.log("checked");
  EXPECT_EQ(toy.run("run", 3), 1) << toy.log("run");
  const std::string log = toy.log("run");
  EXPECT_NE(log.find("warning: stage long cannot start on 3 ranks: "), std::string::npos) << log;
  EXPECT_NE(
      log.find("sala-train: stage long cannot start on 3 ranks: stages[1].train.context: " + why),
      std::string::npos)
      << log;
  EXPECT_TRUE(fs::exists(toy.checkpoint_of("run", "long") + "/manifest.json")) << log;
  // Now it comes first: said before anything is done.
  EXPECT_EQ(toy.run("run", 3), 1);
  EXPECT_EQ(toy.log("run").substr(log.size()).find("stage 2/3"), std::string::npos);
  EXPECT_EQ(toy.run("run", 2), 0) << toy.log("run");
}

TEST(FewerRanks, AStageIsMeasuredByTheRanksOfTheEvaluateStage) {
  const ToyRun toy({.stages = kTwo, .save_every = 0});
  EXPECT_EQ(toy.run("run", 3, "--set stages.train.evaluate_every=1"), 1);
  EXPECT_NE(toy.log("run").find("stages[2].evaluate.context: 3 ranks cannot share sequences by 2"),
            std::string::npos)
      << toy.log("run");
  EXPECT_TRUE(toy.events("run", "step").empty());
}

}  // namespace sala::test
