// Distillation with shares of next-token loss by source: those of single sources do what one share
// of all does where they are equal, and belong to their own source's tokens, in every layout.
#include <gtest/gtest.h>

#include "tests/runs/toy_run.h"

namespace sala::test {

namespace {

const std::string kMixStages =
    "  - align: {tokens: 2560, row_length: 64, batch_tokens: 512, data: {a: 1, b: 2}, lr: 3e-3}\n"
    "  - swap: {layers: [0, 2]}\n"
    "  - distill: {tokens: 5120, row_length: 128, batch_tokens: 512, data: {a: 1, b: 1}, "
    "lr: 2e-3, micro_tokens: 256}\n";

std::string shares(double a, double b) {
  return "--set 'stages.distill.ce_weights={a: " + std::to_string(a) + ", b: " + std::to_string(b) +
         "}' ";
}

std::vector<nlohmann::json> steps(const ToyRun& toy, const std::string& name) {
  std::vector<nlohmann::json> found;
  for (const auto& event : toy.events(name, "step")) {
    if (event.at("stage") == "distill") found.push_back(event);
  }
  return found;
}

void expect_near(const std::vector<nlohmann::json>& expected,
                 const std::vector<nlohmann::json>& found, double tolerance) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    for (const char* key : {"loss", "kl", "ce", "grad_norm"}) {
      const double value = expected[i].at(key);
      EXPECT_NEAR(found[i].at(key).get<double>(), value, tolerance * value)
          << key << ", step " << i;
    }
  }
}

}  // namespace

TEST(MixRuns, SharesOfSourcesAreTheirOwnTokens) {
  ToyRun toy({.stages = kMixStages, .save_every = 0});
  ASSERT_EQ(toy.run("one_share", 1, "--set stages.distill.ce_weight=0.25"), 0)
      << toy.log("one_share");
  ASSERT_EQ(toy.run("equal", 1, shares(0.25, 0.25)), 0) << toy.log("equal");
  EXPECT_EQ(steps(toy, "equal"), steps(toy, "one_share"));

  ASSERT_EQ(toy.run("own", 1, shares(1, 0)), 0) << toy.log("own");
  ASSERT_EQ(toy.run("rest", 1,
                    "--set 'stages.distill.ce_weights={b: 0}' --set stages.distill.ce_weight=1"),
            0)
      << toy.log("rest");
  const auto own = steps(toy, "own");
  EXPECT_EQ(steps(toy, "rest"), own);
  // The first step's forward pass is the same one: source a's loss is its next-token loss.
  ASSERT_EQ(toy.run("ce", 1, "--set stages.distill.ce_weight=1"), 0) << toy.log("ce");
  ASSERT_EQ(toy.run("kl", 1), 0) << toy.log("kl");
  const auto by_source = [&](const std::string& name) {
    return steps(toy, name).front().at("loss_by_source");
  };
  EXPECT_FLOAT_EQ(by_source("own").at("a"), by_source("ce").at("a"));
  EXPECT_FLOAT_EQ(by_source("own").at("b"), by_source("kl").at("b"));

  ASSERT_EQ(toy.run("split", 2, shares(1, 0) + "--set stages.distill.context=2"), 0)
      << toy.log("split");
  expect_near(own, steps(toy, "split"), 1e-5);
  ASSERT_EQ(toy.run("sharded", 2, shares(1, 0) + "--set run.sharding=zero3"), 0)
      << toy.log("sharded");
  expect_near(own, steps(toy, "sharded"), 1e-5);
  // A teacher that is cut to all of its ids.
  ASSERT_EQ(toy.run("cut", 1,
                    shares(1, 0) + "--set stages.distill.topk=96 "
                                   "--set stages.distill.topk_values=fp32"),
            0)
      << toy.log("cut");
  expect_near(own, steps(toy, "cut"), 1e-4);
}

TEST(MixRuns, AStageOfOneSourceTakesItsShare) {
  ToyRun toy({.stages = kMixStages, .save_every = 0});
  const std::string alone = "--set 'stages.distill.data={a: 1}' ";
  ASSERT_EQ(toy.run("share", 1, alone + "--set 'stages.distill.ce_weights={a: 0.5}'"), 0)
      << toy.log("share");
  ASSERT_EQ(toy.run("whole", 1, alone + "--set stages.distill.ce_weight=0.5"), 0)
      << toy.log("whole");
  EXPECT_EQ(steps(toy, "share"), steps(toy, "whole"));
}

}  // namespace sala::test
