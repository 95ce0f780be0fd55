// A run never begins anew, and never goes on differently, because something could not be read.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "data/files/atomic_file.h"
#include "tests/faults/failing_calls.h"
#include "tests/runs/toy_run.h"

namespace sala::test {

namespace {

namespace fs = std::filesystem;

const char* kShort =
    "  - align: {tokens: 1K, row_length: 64, batch_tokens: 512, data: {a: 1, b: 1}, lr: 1e-3}\n"
    "  - score: {method: kl, data: {a: 1}, documents: 4, row_length: 128, recall_span: 16}\n"
    "  - swap: {keep: 2}\n";

// Runs again and expects one line with `expected`.
void expect_refusal(const ToyRun& toy, const std::string& expected, const std::string& set = "") {
  const std::string before = toy.log("run");
  EXPECT_EQ(toy.run("run", 1, set), 1) << expected;
  const std::string log = toy.log("run").substr(before.size());
  EXPECT_NE(log.find(expected), std::string::npos) << log;
  EXPECT_EQ(log.find("stage 1/"), std::string::npos) << log;
}

}  // namespace

TEST(LostCheckpoints, ARunStopsAndSaysWhatToDo) {
  ToyRun toy({.stages = kShort, .save_every = 0});
  ASSERT_EQ(toy.run("run", 1), 0) << toy.log("run");
  const std::string checkpoints = toy.run_folder("run") + "/checkpoints";
  for (const char* rule : {"open */run/checkpoints 1 EIO", "stat */run/checkpoints 1 ESTALE",
                           "open */manifest.json 1 EMFILE", "pread */manifest.json 1 EIO"}) {
    const FailingCalls faults(rule);
    expect_refusal(toy, "cannot");
  }
  fs::rename(checkpoints, checkpoints + "_away");
  expect_refusal(toy, "tells of checkpoints");
  fs::rename(checkpoints + "_away", checkpoints);
  for (const auto& entry : fs::directory_iterator(checkpoints)) {
    const std::string manifest = entry.path().string() + "/manifest.json";
    if (fs::exists(manifest)) std::ofstream(manifest, std::ios::app) << "\xa2\xff";
  }
  expect_refusal(toy, "none of 3 checkpoint(s) can be used");
}

TEST(ChangedInputs, AreRefusedAndMovedOnesAreNot) {
  ToyRun toy({.stages = kShort, .save_every = 0});
  ASSERT_EQ(toy.run("run", 1), 0) << toy.log("run");
  fs::rename(toy.folder() + "/source", toy.folder() + "/moved");
  EXPECT_EQ(toy.run("run", 1, "--set source=" + toy.folder() + "/./moved"), 0) << toy.log("run");
  fs::rename(toy.folder() + "/moved", toy.folder() + "/source");
  const std::string weights = toy.folder() + "/source/model.safetensors";
  std::string bytes = read_text_file(weights);
  bytes.back() ^= 1;
  write_file_atomically(weights, bytes);
  expect_refusal(toy, "the weights of the source");
}

TEST(OwnFiles, AUsersRecipeInTheRunFolderStays) {
  ToyRun toy({.stages = kShort, .save_every = 0});
  fs::create_directories(toy.run_folder("run"));
  const std::string mine = toy.run_folder("run") + "/recipe.yaml";
  std::ofstream(mine) << "# mine\n";
  expect_refusal(toy, "move it elsewhere");
  EXPECT_EQ(read_text_file(mine), "# mine\n");
}

TEST(Metrics, ThatCannotBeWrittenEndTheRunInOneLineOnAllRanks) {
  ToyRun toy({.stages = kShort, .save_every = 0});
  for (const char* rule : {"write */metrics.jsonl 3 EIO", "write */metrics.jsonl 3 EINTR -1",
                           "fsync */metrics.jsonl 1 ENOSPC"}) {
    fs::remove_all(toy.run_folder("run"));
    const FailingCalls faults(rule);
    EXPECT_EQ(toy.run("run", 2), 1) << rule;
  }
  EXPECT_EQ(toy.log("run").find("SIGABRT"), std::string::npos) << toy.log("run");
  EXPECT_NE(toy.log("run").find("metrics.jsonl: cannot"), std::string::npos) << toy.log("run");
}

TEST(ScoreItems, ADamagedLineIsScoredAgain) {
  ToyRun toy({.stages = kShort, .save_every = 0});
  ASSERT_EQ(toy.run("run", 1), 0) << toy.log("run");
  const std::string run = toy.run_folder("run"), items = run + "/scores/items-00000.jsonl";
  const auto scores = toy.events("run", "scores");
  std::string lines = read_text_file(items);
  lines[lines.find("\"layer\":") + 8] = '9';
  write_file_atomically(items, lines);
  for (const auto& entry : fs::directory_iterator(run + "/checkpoints")) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("02") || name.starts_with("03")) fs::remove_all(entry.path());
  }
  ASSERT_EQ(toy.run("run", 1), 0) << toy.log("run");
  EXPECT_EQ(toy.events("run", "scores"), scores);
}

}  // namespace sala::test
