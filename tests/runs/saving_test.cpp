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
const char* kTrain =
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

}  // namespace

TEST_P(KilledWhileSaving, ContinuesBitEqualFromTheCheckpointBefore) {
  const Moment& moment = GetParam();
  const ToyRun toy({.stages = kTrain, .save_every = 0});
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
  const ToyRun toy({.stages = kTrain, .save_every = 0});
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
  const ToyRun toy({.stages = kTrain, .save_every = 0});
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
  const ToyRun toy({.stages = kTrain, .save_every = 0});
  const FailingCalls faults(
      "write */metrics.jsonl 3 SIGUSR1;fsync *.writing/rank-00000.h5.tmp 1 DELAY:700");
  EXPECT_EQ(toy.run("run", 1), 75) << toy.log("run");
  const auto steps = toy.events("run", "step");
  ASSERT_FALSE(steps.empty());
  EXPECT_TRUE(is_complete(toy, "run",
                          "00-train-0000000" + std::to_string(steps.back().at("step").get<int>())))
      << toy.log("run");
}

TEST(Saving, AWriterThatFailedIsToldOnAllRanksAndCostsNothing) {
  const ToyRun toy({.stages = kTrain, .save_every = 0});
  {
    const FailingCalls faults("fsync *00000008.writing/rank-00001.h5.tmp 1 ENOSPC");
    EXPECT_EQ(toy.run("run", 2), 1) << toy.log("run");
  }
  const std::string told = "saving a checkpoint: rank 1 (";
  EXPECT_NE(toy.log("run").find(told), std::string::npos) << toy.log("run");
  EXPECT_NE(toy.log("run").find("rank-00001.h5.tmp: cannot fsync"), std::string::npos);
  EXPECT_TRUE(is_complete(toy, "run", "00-train-00000004"));
  EXPECT_FALSE(fs::exists(toy.run_folder("run") + "/checkpoints/00-train-00000008.writing"));
  EXPECT_EQ(toy.run("run", 2), 0) << toy.log("run");
}

TEST(Saving, WhatWasSavedBeforeAnErrorIsCompleted) {
  const ToyRun toy({.stages = kTrain, .save_every = 0});
  const FailingCalls faults(
      "fsync *00000004.writing/rank-00000.h5.tmp 1 DELAY:700;write */metrics.jsonl 7 EIO");
  EXPECT_EQ(toy.run("run", 1), 1) << toy.log("run");
  EXPECT_NE(toy.log("run").find("metrics.jsonl: cannot write"), std::string::npos);
  EXPECT_TRUE(is_complete(toy, "run", "00-train-00000004")) << toy.log("run");
}

}  // namespace sala::test
