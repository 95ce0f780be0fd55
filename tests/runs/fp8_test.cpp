// Runs that train with products in FP8, by the definition that a CPU computes: losses stay near
// those of full precision, and a killed run goes on bit by bit.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <cmath>

#include "tests/runs/toy_run.h"

namespace sala::test {

namespace {

std::string fp8(const std::string& choice) {
  return "--set stages.distill.matmul=" + choice + " --set stages.distill.fp8_from=16 " +
         "--set stages.train.matmul=" + choice + " --set stages.train.fp8_from=16";
}
const std::string kFp8 = fp8("fp8"), kFp8All = fp8("fp8_all");

// Without score: the layers that are kept are the same in every run.
std::string stages(int64_t save_every) {
  const std::string save = ", save_every: " + std::to_string(save_every) + "}\n";
  return "  - align: {tokens: 10240, row_length: 64, batch_tokens: 512, data: {a: 1, b: 2}, lr: "
         "3e-3}\n"
         "  - swap: {layers: [0, 2]}\n"
         "  - distill: {tokens: 20480, row_length: 128, batch_tokens: 512, data: {a: 1, b: 1}, "
         "lr: 2e-3" +
         save +
         "  - train: {tokens: 10240, row_length: 256, batch_tokens: 512, data: {b: 1}, lr: 1e-3" +
         save;
}

std::vector<double> losses(const ToyRun& toy, const std::string& name, const std::string& stage) {
  std::vector<double> found;
  for (const auto& event : toy.events(name, "step")) {
    if (event.at("stage") == stage) found.push_back(event.at("loss"));
  }
  return found;
}

}  // namespace

TEST(Fp8Runs, LossesStayNearThoseOfFullPrecision) {
  ToyRun toy({.stages = stages(0), .save_every = 0});
  ASSERT_EQ(toy.run("exact", 1), 0) << toy.log("exact");
  ASSERT_EQ(toy.run("fp8", 1, kFp8), 0) << toy.log("fp8");
  ASSERT_EQ(toy.run("all", 1, kFp8All), 0) << toy.log("all");
  EXPECT_NE(losses(toy, "fp8", "distill"), losses(toy, "all", "distill"));
  for (const char* name : {"fp8", "all"}) {
    SCOPED_TRACE(name);
    EXPECT_EQ(losses(toy, "exact", "align"), losses(toy, name, "align"));
    for (const char* stage : {"distill", "train"}) {
      const auto exact = losses(toy, "exact", stage), found = losses(toy, name, stage);
      ASSERT_EQ(exact.size(), found.size());
      EXPECT_NE(exact, found) << "nothing was in FP8";
      EXPECT_LT(found.back(), found.front());
      for (size_t i = 0; i < exact.size(); ++i) {
        EXPECT_NEAR(found[i], exact[i], 0.02 * exact[i] + 0.01) << stage << " step " << i + 1;
      }
    }
  }
  const std::string line = "stage distill: in FP8, forward and gradients of inputs";
  EXPECT_NE(toy.log("fp8").find(line + ": q|k|v|z"), std::string::npos) << toy.log("fp8");
  EXPECT_NE(toy.log("all").find(line + " and weights: q|k|v|z"), std::string::npos)
      << toy.log("all");
}

TEST(Fp8Runs, KilledAndContinuedIsBitEqualOnAnyRecompute) {
  ToyRun toy({.stages = stages(4), .save_every = 0});
  ASSERT_EQ(toy.run("whole", 1, kFp8All), 0) << toy.log("whole");
  for (const char* stage : {"distill", "train"}) {
    const pid_t process = toy.start("killed", 1, kFp8All);
    ASSERT_TRUE(toy.wait_for_step("killed", process, stage, 6)) << toy.log("killed");
    kill(toy.first_rank("killed"), SIGKILL);
    waitpid(process, nullptr, 0);
  }
  const std::string recomputed =
      kFp8All + " --set stages.distill.recompute=full --set stages.train.recompute=selective";
  ASSERT_EQ(toy.run("killed", 1, recomputed), 0) << toy.log("killed");
  EXPECT_EQ(toy.events("whole", "step"), toy.events("killed", "step"));
  EXPECT_EQ(toy.last_manifest("whole").at("tensors"), toy.last_manifest("killed").at("tensors"));
}

// Every rank rounds whole weights, wherever they were gathered from. From the first update on, sums
// that differ in their last bits let some values round the other way.
TEST(Fp8Runs, ShardedWeightsGiveTheLossesOfOneRank) {
  ToyRun toy({.stages = stages(0), .save_every = 0});
  ASSERT_EQ(toy.run("one", 1, kFp8All + " --set stages.distill.micro_tokens=256"), 0)
      << toy.log("one");
  ASSERT_EQ(toy.run("two", 2, kFp8All + " --set run.sharding=zero3"), 0) << toy.log("two");
  const auto one = losses(toy, "one", "distill"), two = losses(toy, "two", "distill");
  ASSERT_EQ(one.size(), two.size());
  EXPECT_NEAR(one[0], two[0], 1e-3 * one[0]);
  for (size_t i = 0; i < one.size(); ++i) EXPECT_NEAR(one[i], two[i], 0.02 * one[i]) << i;
}

}  // namespace sala::test
