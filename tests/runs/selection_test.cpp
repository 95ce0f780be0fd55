// Runs that teach block selection: its loss is lower than untaught, and number of ranks, sharding,
// split rows and recompute change nothing; without the key nothing is there of it.
#include <gtest/gtest.h>

#include "tests/runs/toy_run.h"

namespace sala::test {

namespace {

// Blocks of 16 tokens, six of a list forced or local.
const std::string kSelectionStages =
    "  - align: {tokens: 10240, row_length: 64, batch_tokens: 512, data: {a: 1, b: 2}, lr: 3e-3}\n"
    "  - swap: {layers: [0, 2]}\n"
    "  - distill: {tokens: 20480, row_length: 256, batch_tokens: 512, data: {a: 1, b: 1}, "
    "lr: 2e-3, micro_tokens: 256}\n";
const std::string kSmallBlocks =
    "--set model.sparse.kernel_size=8 --set model.sparse.kernel_stride=4 "
    "--set model.sparse.block_size=16 --set model.sparse.window_size=32 "
    "--set model.sparse.topk=3 --set model.sparse.dense_len=64 ";
const std::string kTaught = kSmallBlocks + "--set stages.distill.selection_weight=5 ";

std::vector<nlohmann::json> steps(const ToyRun& toy, const std::string& name) {
  std::vector<nlohmann::json> found;
  for (const auto& event : toy.events(name, "step")) {
    if (event.at("stage") == "distill") found.push_back(event);
  }
  return found;
}

double mean_of(const std::vector<nlohmann::json>& steps, size_t begin, size_t end) {
  double sum = 0;
  size_t count = 0;
  for (size_t i = begin; i < end; ++i) {
    if (!steps[i].contains("selection_loss")) continue;
    sum += steps[i].at("selection_loss").get<double>();
    ++count;
  }
  return sum / static_cast<double>(count);
}

}  // namespace

TEST(SelectionRuns, LossIsLowerAndEveryLayoutAgrees) {
  ToyRun toy({.stages = kSelectionStages, .save_every = 0});
  ASSERT_EQ(toy.run("plain", 1, kSmallBlocks), 0) << toy.log("plain");
  ASSERT_EQ(toy.run("one", 1, kTaught), 0) << toy.log("one");
  ASSERT_EQ(toy.run("full", 1, kTaught + "--set stages.distill.recompute=full"), 0)
      << toy.log("full");
  ASSERT_EQ(toy.run("two", 2, kTaught + "--set run.sharding=zero3"), 0) << toy.log("two");
  // A rank without rows: a step has two.
  ASSERT_EQ(toy.run("three", 3, kTaught), 0) << toy.log("three");
  const std::string split = "--set stages.distill.context=";
  ASSERT_EQ(toy.run("split", 3, kTaught + split + "3"), 0) << toy.log("split");
  ASSERT_EQ(toy.run("both", 4, kTaught + split + "2 --set run.sharding=zero3"), 0)
      << toy.log("both");
  const auto plain = steps(toy, "plain"), one = steps(toy, "one");
  EXPECT_FALSE(plain.front().contains("selection_loss"));
  EXPECT_EQ(plain.front().at("kl"), one.front().at("kl"));  // of the forward alone
  EXPECT_NE(plain.front().at("grad_norm"), one.front().at("grad_norm"));
  EXPECT_EQ(one, steps(toy, "full"));
  ASSERT_EQ(one.size(), 40u);
  // Attention changes as the model learns, and the loss with it: what counts is the difference
  // from a run that hardly teaches: small, since attention on noise has few peaks.
  const std::string hardly = kSmallBlocks + "--set stages.distill.selection_weight=1e-6";
  ASSERT_EQ(toy.run("hardly", 1, hardly), 0) << toy.log("hardly");
  EXPECT_LT(mean_of(one, 32, 40), 0.99 * mean_of(steps(toy, "hardly"), 32, 40));
  for (const char* name : {"two", "three", "split", "both"}) {
    const auto other = steps(toy, name);
    ASSERT_EQ(other.size(), one.size());
    for (size_t i = 0; i < one.size(); ++i) {
      for (const char* key : {"loss", "grad_norm", "selection_loss"}) {
        if (!one[i].contains(key)) continue;
        const double expected = one[i].at(key).get<double>();
        EXPECT_NEAR(other[i].at(key).get<double>(), expected, 2e-4 * expected)
            << key << " " << i << " of " << name;
      }
    }
  }
}

}  // namespace sala::test
