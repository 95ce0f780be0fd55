// A run that was killed and continued is the run that was not.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <random>

#include "data/files/atomic_file.h"
#include "tests/runs/toy_run.h"

namespace sala::test {

namespace {

namespace fs = std::filesystem;

// kill -9 of a rank: mpirun ends the others.
void kill_first_rank(const ToyRun& toy, const std::string& name, pid_t mpirun) {
  kill(toy.first_rank(name), SIGKILL);
  waitpid(mpirun, nullptr, 0);
}

void expect_same_run(const ToyRun& toy, const std::string& a, const std::string& b) {
  for (const char* event : {"step", "scores", "swap", "evaluate"}) {
    const auto one = toy.events(a, event), other = toy.events(b, event);
    ASSERT_EQ(one.size(), other.size()) << event;
    for (size_t i = 0; i < one.size(); ++i) EXPECT_EQ(one[i], other[i]) << event;
  }
  const std::string weights = "/model.safetensors";
  EXPECT_EQ(read_text_file(toy.export_folder(a) + weights),
            read_text_file(toy.export_folder(b) + weights));
  EXPECT_EQ(toy.last_manifest(a).at("tensors"), toy.last_manifest(b).at("tensors"));
}

uintmax_t bytes_of(const std::string& folder) {
  uintmax_t bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) bytes += entry.file_size();
  }
  return bytes;
}

}  // namespace

TEST(Resume, KilledInEveryStageAndContinuedIsBitEqual) {
  ToyRun toy({.stages = "", .save_every = 4});
  ASSERT_EQ(toy.run("whole", 2), 0) << toy.log("whole");
  std::random_device random;  // other moments each time, before and after any save
  for (const char* stage : {"align", "distill", "train"}) {
    const int64_t step = 1 + random() % 17;
    SCOPED_TRACE(std::string("killed at step ") + std::to_string(step) + " of " + stage);
    const pid_t process = toy.start("killed", 2);
    ASSERT_TRUE(toy.wait_for_step("killed", process, stage, step)) << toy.log("killed");
    kill_first_rank(toy, "killed", process);
  }
  ASSERT_EQ(toy.run("killed", 2), 0) << toy.log("killed");
  expect_same_run(toy, "whole", "killed");
}

TEST(Resume, FinishedScoresSurviveAKill) {
  // Many small items, so that the kill lands among them.
  const std::string stages =
      "  - align: {tokens: 1K, row_length: 64, batch_tokens: 512, data: {a: 1}, lr: 3e-3}\n"
      "  - score: {method: kl, data: {a: 1}, documents: 24, row_length: 128, recall_span: 16}\n"
      "  - swap: {keep: 1, force_ends: false}\n";
  ToyRun toy({.stages = stages, .save_every = 0});
  ASSERT_EQ(toy.run("whole", 1), 0) << toy.log("whole");
  const pid_t process = toy.start("killed", 2);
  ASSERT_TRUE(toy.wait_for_scores("killed", process, 10)) << toy.log("killed");
  kill_first_rank(toy, "killed", process);
  const int64_t finished = toy.num_scores("killed");
  ASSERT_EQ(toy.run("killed", 3), 0) << toy.log("killed");
  EXPECT_EQ(toy.num_scores("killed"), 24 * 3);  // nothing was done twice
  EXPECT_LT(finished, 24 * 3);
  const auto one = toy.events("whole", "scores").at(0).at("layers");
  const auto other = toy.events("killed", "scores").at(0).at("layers");
  for (size_t l = 0; l < one.size(); ++l) {
    const double a = one[l].at("score"), b = other[l].at("score");
    EXPECT_NEAR(a, b, 1e-5 * a) << "layer " << l;
  }
  EXPECT_EQ(toy.events("whole", "swap").at(0).at("kept"),
            toy.events("killed", "swap").at(0).at("kept"));
}

TEST(Resume, RanksEndWhenTheirLauncherIsKilled) {
  ToyRun toy;
  const pid_t process = toy.start("run", 2);
  ASSERT_TRUE(toy.wait_for_step("run", process, "align", 2)) << toy.log("run");
  kill(process, SIGKILL);
  waitpid(process, nullptr, 0);
  sleep(1);  // the kernel's signal to the ranks, and their end
  EXPECT_EQ(toy.run("run", 2), 0) << toy.log("run");
}

TEST(Resume, StoppedOnASignalContinuesBitEqual) {
  ToyRun toy;
  ASSERT_EQ(toy.run("whole", 1), 0) << toy.log("whole");
  // The model is kept once for all boundaries at which it is the same.
  const uintmax_t weights = fs::file_size(toy.export_folder("whole") + "/model.safetensors");
  for (const char* stage : {"export", "done"}) {
    EXPECT_LT(bytes_of(toy.checkpoint_of("whole", stage)), weights / 4) << stage;
  }
  const std::string checkpoints = toy.run_folder("whole") + "/checkpoints";
  const uintmax_t model = 2 * weights;  // fp32, exported as bf16
  EXPECT_LT(bytes_of(checkpoints), 5 * model) << "those of swap, distill, train; align's mixers";
  const pid_t process = toy.start("stopped", 1);
  ASSERT_TRUE(toy.wait_for_step("stopped", process, "distill", 5));
  kill(process, SIGUSR1);
  int status = 0;
  waitpid(process, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 75) << toy.log("stopped");
  EXPECT_NE(toy.log("stopped").find("-distill-"), std::string::npos) << "no checkpoint";
  EXPECT_EQ(toy.run("stopped", 1), 0) << toy.log("stopped");
  expect_same_run(toy, "whole", "stopped");
}

TEST(Resume, SavedOnFourRanksContinuesOnOneAndTwo) {
  ToyRun toy({.stages = "", .save_every = 4});
  ASSERT_EQ(toy.run("four", 4), 0) << toy.log("four");
  const auto whole = toy.events("four", "step");
  for (int ranks : {1, 2}) {
    const std::string name = "then" + std::to_string(ranks);
    const pid_t process = toy.start(name, 4);
    ASSERT_TRUE(toy.wait_for_step(name, process, "distill", 9)) << toy.log(name);
    kill_first_rank(toy, name, process);
    ASSERT_EQ(toy.run(name, ranks), 0) << toy.log(name);
    const auto other = toy.events(name, "step");
    ASSERT_EQ(other.size(), whole.size());
    for (size_t i = 0; i < whole.size(); ++i) {
      const double a = whole[i].at("loss"), b = other[i].at("loss");
      EXPECT_LE(std::abs(a - b), 1e-5 * std::abs(a)) << whole[i].at("stage") << " " << i;
    }
  }
}

TEST(Resume, AChangedRecipeIsRefusedWithTheKeys) {
  ToyRun toy;
  ASSERT_EQ(toy.run("run", 1), 0) << toy.log("run");
  EXPECT_NE(toy.run("run", 1, "--set stages.align.lr=1e-4"), 0);
  EXPECT_NE(toy.log("run").find("stages[0].align.lr"), std::string::npos) << toy.log("run");
  EXPECT_NE(toy.log("run").find("no checkpoint is older than the change"), std::string::npos);
  // What it advises begins before the first stage that changed.
  EXPECT_NE(toy.run("run", 1, "--set stages.train.lr=1e-4 --set stages.distill.lr=1e-4"), 0);
  const std::string advice =
      "run.folder with --from " + toy.checkpoint_of("run", "distill") + ", the last checkpoint";
  EXPECT_NE(toy.log("run").find(advice), std::string::npos) << toy.log("run");
  // --check knows it too.
  EXPECT_EQ(toy.run("run", 1, "--check --set stages.train.lr=1e-4"), 2) << toy.log("run");
  EXPECT_NE(toy.log("run").find("run.folder: "), std::string::npos) << toy.log("run");
  EXPECT_NE(toy.log("run").find("stages[4].train.lr"), std::string::npos) << toy.log("run");
  EXPECT_EQ(toy.run("run", 1, "--check --set stages.train.save_every=3"), 0) << toy.log("run");
  EXPECT_NE(toy.log("run").find("a start continues there"), std::string::npos) << toy.log("run");
}

// What later stages need besides may come while earlier ones are done.
TEST(Resume, ANewSourceIsNoChangedInput) {
  ToyRun toy;
  ASSERT_EQ(toy.run("run", 1), 0) << toy.log("run");
  const std::string files = toy.folder() + "/a.h5";
  EXPECT_EQ(toy.run("run", 1, "--set data.sources.c.files=[" + files + "]"), 0) << toy.log("run");
}

}  // namespace sala::test
