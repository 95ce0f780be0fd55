// Checkpoints that are written while the run goes on: it steps meanwhile, dies meanwhile, is told
// to stop meanwhile, and learns later that writing failed.
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>

#include "tests/faults/failing_calls.h"
#include "tests/runs/toy_run.h"

namespace sala::test {

namespace {

namespace fs = std::filesystem;

// Sixteen steps, a checkpoint at every fourth.
const char* kSaved =
    "  - train: {tokens: 8K, row_length: 64, batch_tokens: 512, data: {a: 1}, lr: 1e-3, "
    "save_every: 4}\n";

bool is_complete(const ToyRun& toy, const std::string& name, const std::string& checkpoint) {
  return fs::exists(toy.run_folder(name) + "/checkpoints/" + checkpoint + "/manifest.json");
}

// "8" of the folder 00-train-00000008, in a moment of its save: "fsync */rank-00000.h5.tmp 1".
struct Moment {
  const char* name;
  const char* call;
  int ranks;
};

const Moment kMoments[] = {
    {"WhereItsFileIsMade", "open *00000008.writing/rank-00000.h5.tmp 1", 1},
    {"AtItsFirstBytes", "pwrite *00000008.writing/rank-00000.h5.tmp 1", 1},
    {"AmongItsBytes", "pwrite *00000008.writing/rank-00000.h5.tmp 7", 1},
    {"WhereItsFileBecomesDurable", "fsync *00000008.writing/rank-00000.h5.tmp 1", 1},
    {"WhereItsFileGetsItsName", "rename *00000008.writing/rank-00000.h5 1", 1},
    {"WhereItsManifestIsMade", "open *00000008.writing/manifest.json.tmp 1", 1},
    {"WhereItsManifestIsWritten", "write *00000008.writing/manifest.json.tmp 1", 1},
    {"WhereItsManifestBecomesDurable", "fsync *00000008.writing/manifest.json.tmp 1", 1},
    {"WhereItsManifestGetsItsName", "rename *00000008.writing/manifest.json 1", 1},
    {"WhereTheFolderGetsItsName", "rename *00-train-00000008 1", 1},
    {"AtAnotherRanksFirstBytes", "pwrite *00000008.writing/rank-00001.h5.tmp 1", 2},
    {"WhereAnotherRanksFileBecomesDurable", "fsync *00000008.writing/rank-00001.h5.tmp 1", 2},
};

class KilledWhileSaving : public testing::TestWithParam<Moment> {};

TEST_P(KilledWhileSaving, ContinuesBitEqualFromTheCheckpointBefore) {
  const Moment& moment = GetParam();
  const ToyRun toy({.stages = kSaved, .save_every = 0});
  ASSERT_EQ(toy.run("whole", moment.ranks), 0) << toy.log("whole");
  {
    const FailingCalls killed(std::string(moment.call) + " SIGKILL");
    EXPECT_NE(toy.run("run", moment.ranks), 0);
  }
  EXPECT_TRUE(is_complete(toy, "run", "00-train-00000004")) << toy.log("run");
  EXPECT_FALSE(is_complete(toy, "run", "00-train-00000008")) << toy.log("run");
  EXPECT_FALSE(is_complete(toy, "run", "00-train-00000008.writing") &&
               std::string(moment.name) != "WhereTheFolderGetsItsName");
  ASSERT_EQ(toy.run("run", moment.ranks), 0) << toy.log("run");
  EXPECT_NE(toy.log("run").find("00-train-00000004: stage train, step 4"), std::string::npos);
  EXPECT_EQ(toy.events("run", "step"), toy.events("whole", "step"));
  EXPECT_EQ(toy.last_manifest("run").at("tensors"), toy.last_manifest("whole").at("tensors"));
}

INSTANTIATE_TEST_SUITE_P(Each, KilledWhileSaving, testing::ValuesIn(kMoments),
                         [](const auto& info) { return info.param.name; });

// The disk is done with the checkpoint of step 50 only when the run has written its 80th line of
// metrics: a run that waited for its disk would wait for a minute, and make no step meanwhile.
TEST(Saving, StepsAreMadeWhileACheckpointIsWritten) {
  const ToyRun toy({.stages = kSaved, .save_every = 0});
  const std::string later = toy.folder() + "/later";
  const FailingCalls slow_disk("write */metrics.jsonl 80 MARK:" + later +
                               ";fsync *00000050.writing/rank-00001.h5.tmp 1 UNTIL:" + later);
  ASSERT_EQ(toy.run("run", 2, "--set stages.train.tokens=80K --set stages.train.save_every=50"), 0)
      << toy.log("run");
  EXPECT_GT(toy.step_at_commit("run", "train", 50), 55) << toy.log("run");
  EXPECT_NE(toy.log("run").find("checkpoint 00-train-00000050 (stage train, step 50), stall "),
            std::string::npos)
      << toy.log("run");
}

// As launch/run_slurm.sbatch tells it: so long after its signal Slurm kills.
TEST(Saving, ADiskTooSlowForTheLaunchersPatienceIsSaidOnce) {
  const ToyRun toy({.stages = kSaved, .save_every = 0});
  const std::string warning = "WARNING: the launcher ends the run";
  {
    const FailingCalls slow_disk("fsync *.writing/rank-00000.h5.tmp 1 DELAY:700 -1");
    setenv("SALA_STOP_SECONDS", "1", 1);
    EXPECT_EQ(toy.run("slow", 1), 0) << toy.log("slow");
  }
  setenv("SALA_STOP_SECONDS", "300", 1);
  EXPECT_EQ(toy.run("fast", 1, "--set stages.train.tokens=2K"), 0) << toy.log("fast");
  setenv("SALA_STOP_SECONDS", "five minutes", 1);
  EXPECT_NE(toy.run("wrong", 1), 0);
  unsetenv("SALA_STOP_SECONDS");
  const std::string said = toy.log("slow");
  EXPECT_NE(said.find(warning + " 1 s after"), std::string::npos) << said;
  EXPECT_NE(said.find("--signal=B:USR1@60"), std::string::npos) << said;
  EXPECT_EQ(said.find(warning), said.rfind(warning)) << said;
  EXPECT_EQ(toy.log("fast").find(warning), std::string::npos) << toy.log("fast");
  EXPECT_NE(toy.log("wrong").find("SALA_STOP_SECONDS: expected seconds"), std::string::npos);
}

TEST(Saving, AStopWaitsForItsCheckpoint) {
  const ToyRun toy({.stages = kSaved, .save_every = 0});
  const FailingCalls faults(
      "write */metrics.jsonl 3 SIGUSR1;fsync *.writing/rank-00000.h5.tmp 1 DELAY:700");
  EXPECT_EQ(toy.run("run", 1), 75) << toy.log("run");
  const auto steps = toy.events("run", "step");
  ASSERT_FALSE(steps.empty());
  EXPECT_TRUE(is_complete(toy, "run",
                          "00-train-0000000" + std::to_string(steps.back().at("step").get<int>())))
      << toy.log("run");
}

TEST(Saving, AWriterThatFailsForAMomentIsToldOnAllRanksAndCostsNothing) {
  const ToyRun toy({.stages = kSaved, .save_every = 0});
  ASSERT_EQ(toy.run("whole", 2), 0) << toy.log("whole");
  {
    const FailingCalls faults("fsync *00000008.writing/rank-00001.h5.tmp 1 ENOSPC");
    EXPECT_EQ(toy.run("run", 2), 0) << toy.log("run");
  }
  const std::string told =
      "WARNING: stage train, step 8: no checkpoint: saving a checkpoint: rank 1";
  EXPECT_NE(toy.log("run").find(told), std::string::npos) << toy.log("run");
  EXPECT_NE(toy.log("run").find("rank-00001.h5.tmp: cannot fsync"), std::string::npos);
  const auto failures = toy.events("run", "checkpoint_failed");
  ASSERT_EQ(failures.size(), 1u);
  EXPECT_EQ(failures[0].at("step"), 8);
  EXPECT_TRUE(is_complete(toy, "run", "00-train-00000012"));
  EXPECT_FALSE(fs::exists(toy.run_folder("run") + "/checkpoints/00-train-00000008"));
  EXPECT_FALSE(fs::exists(toy.run_folder("run") + "/checkpoints/00-train-00000008.writing"));
  EXPECT_EQ(toy.events("run", "step"), toy.events("whole", "step"));
  EXPECT_EQ(toy.last_manifest("run").at("tensors"), toy.last_manifest("whole").at("tensors"));
}

TEST(Saving, TheThirdFailureInARowEndsTheRun) {
  const ToyRun toy({.stages = kSaved, .save_every = 0});
  const std::string more = "--set stages.train.tokens=16K";
  {
    const FailingCalls twice(
        "fsync *.writing/rank-00000.h5.tmp 2 EIO 2;mkdir *24.writing 1 EDQUOT");
    EXPECT_EQ(toy.run("run", 1, more), 0) << toy.log("run");
  }
  EXPECT_EQ(toy.events("run", "checkpoint_failed").size(), 3u);  // 4 and 16 are saved in between
  {
    const FailingCalls thrice("fsync *.writing/rank-00000.h5.tmp 2 EIO 3");
    EXPECT_EQ(toy.run("other", 1, more), 1) << toy.log("other");
  }
  EXPECT_EQ(toy.events("other", "checkpoint_failed").size(), 2u);
  EXPECT_NE(toy.log("other").find("(3 checkpoints in a row could not be written)"),
            std::string::npos)
      << toy.log("other");
  EXPECT_TRUE(is_complete(toy, "other", "00-train-00000004"));
  EXPECT_EQ(toy.run("other", 1, more), 0) << toy.log("other");
}

TEST(Saving, TheNextCheckpointComesSoonAfterAFailure) {
  const ToyRun toy({.stages = kSaved, .save_every = 0});
  const FailingCalls faults("fsync *.writing/rank-00000.h5.tmp 1 ESTALE");
  ASSERT_EQ(toy.run("run", 1, "--set stages.train.tokens=160K --set stages.train.save_every=150"),
            0)
      << toy.log("run");
  std::vector<int64_t> steps;
  for (const auto& saved : toy.events("run", "checkpoint")) steps.push_back(saved.at("step"));
  EXPECT_EQ(steps, (std::vector<int64_t>{250, 300, 0}));
}

// Where no later save would make up for it the state is written again while it is in memory.
TEST(Saving, ABoundaryAndAStopAreTriedAgainAtOnce) {
  const ToyRun toy({.stages = kSaved, .save_every = 0});
  const std::string again = "trying again in 1 s", short_run = "--set stages.train.tokens=2K";
  for (const char* rule :
       {"open *-done-00000000.writing/manifest.json.tmp 1 EIO", "mkdir *0.writing 1 EDQUOT",
        "pwrite */frozen/*.h5.tmp 1 ENOSPC", "fsync */run/checkpoints 2 EIO"}) {
    fs::remove_all(toy.run_folder("run"));
    fs::remove(toy.folder() + "/run.log");
    const FailingCalls faults(rule);
    EXPECT_EQ(toy.run("run", 2, short_run), 0) << rule << toy.log("run");
    EXPECT_NE(toy.log("run").find(again), std::string::npos) << rule << toy.log("run");
    EXPECT_TRUE(is_complete(toy, "run", "01-done-00000000")) << rule;
  }
  const std::string stopped = "write */metrics.jsonl 3 SIGUSR1;";
  {
    const FailingCalls once(stopped + "fsync *.writing/rank-00000.h5.tmp 1 EIO");
    EXPECT_EQ(toy.run("stopped", 1), 75) << toy.log("stopped");
  }
  EXPECT_NE(toy.log("stopped").find(again), std::string::npos) << toy.log("stopped");
  EXPECT_EQ(toy.events("stopped", "checkpoint").size(), 1u);
  {
    const FailingCalls for_ever(stopped + "fsync *.writing/rank-00000.h5.tmp 1 EIO -1");
    EXPECT_EQ(toy.run("lost", 1), 1) << toy.log("lost");
  }
  EXPECT_NE(toy.log("lost").find("trying again in 5 s"), std::string::npos) << toy.log("lost");
  for (const auto& left : fs::directory_iterator(toy.run_folder("lost") + "/checkpoints")) {
    EXPECT_EQ(left.path().filename(), "frozen");
  }
}

TEST(Saving, WhatWasSavedBeforeAnErrorIsCompleted) {
  const ToyRun toy({.stages = kSaved, .save_every = 0});
  const FailingCalls faults(
      "fsync *00000004.writing/rank-00000.h5.tmp 1 DELAY:700;write */metrics.jsonl 7 EIO");
  EXPECT_EQ(toy.run("run", 1), 1) << toy.log("run");
  EXPECT_NE(toy.log("run").find("metrics.jsonl: cannot write"), std::string::npos);
  EXPECT_TRUE(is_complete(toy, "run", "00-train-00000004")) << toy.log("run");
}

}  // namespace
}  // namespace sala::test
