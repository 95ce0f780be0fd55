// Supervised fine-tuning in whole runs: what the loss mask leaves out does not matter, ranks change
// nothing, kept queries and keys stay. And steps whose loss or gradient is a spike.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/data/test_store.h"
#include "tests/runs/toy_run.h"
#include "trainer/checkpoint/checkpoints.h"

namespace sala::test {

namespace {

const char* kHybrid =
    "  - align: {tokens: 1K, row_length: 64, batch_tokens: 512, data: {a: 1}, lr: 1e-3}\n"
    "  - score: {method: uniform}\n"
    "  - swap: {keep: 2}\n";
const char* kSft =
    "  - sft: {tokens: 3K, row_length: 128, batch_tokens: 512, data: {b: 1}, lr: 1e-3}\n";
// One row a step, so that a step may have one target.
const char* kRowByRow =
    "  - sft: {tokens: 10K, row_length: 64, batch_tokens: 64, data: {b: 1}, lr: 1e-4}\n";

// Store b: documents of which the first or the second half counts. `salt` decides the ids of the
// second halves.
void write_talks(const ToyRun& toy, bool first_half, uint64_t salt) {
  TestStore store = numbered_documents(40, 200, 5, 96);
  store.tokenizer_hash = xxh3_64_hex("{}", 2);
  for (size_t d = 0; d < store.documents.size(); ++d) {
    auto& ids = store.documents[d];
    const size_t half = ids.size() / 2;
    for (size_t t = half; t + 1 < ids.size(); ++t) {
      ids[t] = 1 + (ids[t] + static_cast<int>(salt * (t + 1))) % 95;
    }
    auto& mask = store.masks.emplace_back(ids.size(), first_half ? 0 : 1);
    std::fill(mask.begin(), mask.begin() + static_cast<ptrdiff_t>(half), first_half ? 1 : 0);
  }
  write_store(toy.folder() + "/b.h5", store);
}

std::vector<double> losses(const ToyRun& toy, const std::string& name) {
  std::vector<double> all;
  for (const auto& step : toy.events(name, "step")) {
    if (step.at("stage") == "sft") all.push_back(step.at("loss"));
  }
  return all;
}

// Names of the tensors that the stage left as they were.
std::vector<std::string> unchanged(const ToyRun& toy, const std::string& name) {
  const auto before = Checkpoints::open(toy.checkpoint_of(name, "sft"));
  const auto after = Checkpoints::open(toy.checkpoint_of(name, "done"));
  std::vector<std::string> same;
  for (const std::string& part : after->parts()) {
    const Layout layout = after->layout(part);
    at::Tensor x = at::empty({layout.num_elements}), y = at::empty({layout.num_elements});
    before->tensor(part, "master", layout, 0, x);
    after->tensor(part, "master", layout, 0, y);
    for (const Entry& entry : layout.entries) {
      const auto of = [&](const at::Tensor& flat) {
        return flat.narrow(0, entry.offset, entry.num_elements());
      };
      if (at::equal(of(x), of(y))) same.push_back(entry.name);
    }
  }
  std::sort(same.begin(), same.end());
  return same;
}

}  // namespace

TEST(Sft, WhatHasNoLossIsNoTargetAndStaysInsideItsConversation) {
  const ToyRun toy({.stages = kSft, .save_every = 0});
  write_talks(toy, true, 1);
  ASSERT_EQ(toy.run("one", 1), 0) << toy.log("one");
  write_talks(toy, true, 2);  // other words after the last target of each document
  ASSERT_EQ(toy.run("other_words", 1), 0) << toy.log("other_words");
  EXPECT_EQ(losses(toy, "one").size(), 6u);
  EXPECT_EQ(losses(toy, "one"), losses(toy, "other_words"));
  EXPECT_EQ(toy.last_manifest("one").at("tensors"), toy.last_manifest("other_words").at("tensors"));

  write_talks(toy, false, 2);
  ASSERT_EQ(toy.run("other_mask", 1), 0) << toy.log("other_mask");
  EXPECT_NE(losses(toy, "other_words"), losses(toy, "other_mask"));
}

TEST(Sft, TwoRanksTrainAsOneAndKeptQueriesAndKeysStay) {
  const ToyRun toy({.stages = std::string(kHybrid) + kSft, .save_every = 0});
  write_talks(toy, false, 1);
  const std::string freeze = "--set stages.sft.preserve_qk=freeze";
  ASSERT_EQ(toy.run("one", 1, freeze), 0) << toy.log("one");
  ASSERT_EQ(toy.run("two", 2, freeze + " --set run.sharding=zero3"), 0) << toy.log("two");
  const auto one = losses(toy, "one"), two = losses(toy, "two");
  ASSERT_EQ(one.size(), 6u);
  ASSERT_EQ(two.size(), 6u);
  for (size_t i = 0; i < one.size(); ++i) EXPECT_NEAR(one[i], two[i], 1e-5 * one[i]) << i;

  const auto kept = toy.events("one", "swap").at(0).at("kept").get<std::vector<int64_t>>();
  std::vector<std::string> frozen;
  for (int64_t layer : kept) {
    for (const char* matrix : {"k", "q"}) {
      frozen.push_back("model.layers." + std::to_string(layer) + ".self_attn." + matrix +
                       "_proj.weight");
    }
  }
  EXPECT_EQ(unchanged(toy, "one"), frozen);
  EXPECT_EQ(unchanged(toy, "two"), frozen);
  ASSERT_EQ(toy.run("all", 1), 0) << toy.log("all");
  EXPECT_EQ(unchanged(toy, "all"), std::vector<std::string>{});
}

TEST(Sft, AStoreWithoutAMaskIsRefusedAndSoIsSftBeforeTheSwap) {
  const ToyRun toy({.stages = std::string(kHybrid) + kSft, .save_every = 0});
  EXPECT_NE(toy.run("run", 1), 0);
  EXPECT_NE(toy.log("run").find("stages[3].sft.data.b: expected stores with a loss_mask"),
            std::string::npos)
      << toy.log("run");
  EXPECT_NE(toy.log("run").find("b.h5) has none: make them with `data/prepare chat`"),
            std::string::npos);
  const ToyRun early({.stages = std::string(kSft) + kHybrid, .save_every = 0});
  EXPECT_NE(early.run("run", 1), 0);
  EXPECT_NE(early.log("run").find("sft must come after swap (stages[3])"), std::string::npos)
      << early.log("run");
}

// The gradient of one token is many times as long as the mean one of a row, and its loss anything.
TEST(Spikes, AreSaidSkippedOrStopTheRunOnEveryRank) {
  const ToyRun toy({.stages = kRowByRow, .save_every = 0});
  TestStore store = numbered_documents(40, 200, 5, 96);
  store.tokenizer_hash = xxh3_64_hex("{}", 2);
  for (const auto& ids : store.documents) {
    const bool rare = store.masks.size() % 5 == 3;
    store.masks.emplace_back(ids.size(), rare ? 0 : 1)[ids.size() / 2] = 1;
  }
  write_store(toy.folder() + "/b.h5", store);
  const std::string set = "--set stages.sft.on_spike=";
  ASSERT_EQ(toy.run("warn", 1), 0) << toy.log("warn");
  const auto spikes = toy.events("warn", "spike");
  ASSERT_GE(spikes.size(), 2u) << toy.log("warn");
  const int64_t first = spikes[0].at("step");
  EXPECT_GT(first, 16);
  EXPECT_NE(toy.log("warn").find(": spike: "), std::string::npos);

  ASSERT_EQ(toy.run("skip", 2, set + "skip"), 0) << toy.log("skip");
  EXPECT_EQ(toy.events("skip", "spike").at(0).at("step"), first);
  EXPECT_NE(toy.log("skip").find("no parameter was changed on any rank"), std::string::npos);
  const auto warned = losses(toy, "warn"), skipped = losses(toy, "skip");
  ASSERT_EQ(warned.size(), skipped.size());
  EXPECT_GT(std::abs(warned.back() - skipped.back()), 1e-4 * warned.back());

  for (const std::string& choice :
       std::vector<std::string>{"stop", "skip --set stages.sft.max_skips=0"}) {
    EXPECT_NE(toy.run(choice.substr(0, 4) + "ped", 2, set + choice), 0);
    const std::string log = toy.log(choice.substr(0, 4) + "ped");
    EXPECT_NE(log.find(choice[1] == 't' ? "no parameter was changed on any rank (on_spike: stop)"
                                        : "1 step(s) in a row with a spike of loss or gradient"),
              std::string::npos)
        << log;
    EXPECT_EQ(toy.events(choice.substr(0, 4) + "ped", "spike").size(), 1u);
  }
}

}  // namespace sala::test
