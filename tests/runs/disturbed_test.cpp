// Runs that die, stop, lose their lock or destroy their model at a chosen line of metrics.jsonl.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <filesystem>
#include <fstream>

#include "data/files/atomic_file.h"
#include "tests/faults/failing_calls.h"
#include "tests/runs/toy_run.h"

namespace sala::test {

namespace {

namespace fs = std::filesystem;

// Eight steps; every second one is evaluated, the fourth is saved.
const char* kDisturbed =
    "  - train: {tokens: 4K, row_length: 64, batch_tokens: 512, data: {a: 1}, lr: 1e-3, "
    "evaluate_every: 2, save_every: 4}\n"
    "  - evaluate: {sources: [a], tokens: 256, row_length: 64}\n";

const char* kDestroy =
    "  - train: {tokens: 8K, row_length: 64, batch_tokens: 512, data: {a: 1}, lr: 3}\n"
    "  - export: {folder: none}\n";

// Which write of metrics.jsonl tells of the step: each line is one.
std::string write_of_step(const ToyRun& toy, const std::string& name, int64_t step) {
  std::ifstream file(toy.run_folder(name) + "/metrics.jsonl");
  int64_t number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    const auto j = nlohmann::json::parse(line);
    if (j.at("event") == "step" && j.at("step") == step) break;
  }
  return std::to_string(number);
}

size_t num_checkpoints(const ToyRun& toy, const std::string& name) {
  size_t count = 0;
  for (const auto& entry :
       fs::recursive_directory_iterator(toy.run_folder(name) + "/checkpoints")) {
    count += entry.path().filename() == "manifest.json";
  }
  return count;
}

}  // namespace

TEST(Disturbed, MetricsTellEveryStepAndEvaluationOnce) {
  const ToyRun toy({.stages = kDisturbed, .save_every = 0});
  ASSERT_EQ(toy.run("whole", 1), 0) << toy.log("whole");
  ASSERT_EQ(toy.events("whole", "step").size(), 8u);
  ASSERT_GE(toy.events("whole", "evaluate").size(), 5u);
  {
    const FailingCalls killed_before_any_checkpoint("write */metrics.jsonl " +
                                                    write_of_step(toy, "whole", 3) + " SIGKILL");
    EXPECT_EQ(toy.run("run", 1), 128 + SIGKILL);
    EXPECT_EQ(toy.events("run", "step").size(), 2u);
  }
  {
    const FailingCalls stopped_where_an_evaluation_is_due(
        "write */metrics.jsonl " + write_of_step(toy, "whole", 2) + " SIGUSR1");
    EXPECT_EQ(toy.run("run", 1), 75) << toy.log("run");
    EXPECT_EQ(toy.events("run", "step").size(), 2u);
    EXPECT_EQ(num_checkpoints(toy, "run"), 1u);
  }
  ASSERT_EQ(toy.run("run", 1), 0) << toy.log("run");
  for (const char* event : {"step", "evaluate"}) {
    EXPECT_EQ(toy.events("run", event), toy.events("whole", event)) << event;
  }
}

TEST(Disturbed, ACheckpointIsOnlySavedBehindDurableMetrics) {
  const ToyRun toy({.stages = kDisturbed, .save_every = 0});
  const FailingCalls faults("fsync */metrics.jsonl 2 EIO");
  EXPECT_EQ(toy.run("run", 1), 1) << toy.log("run");
  EXPECT_EQ(num_checkpoints(toy, "run"), 1u);  // of the fourth step
  EXPECT_NE(toy.log("run").find("metrics.jsonl: cannot fsync"), std::string::npos);
}

TEST(Disturbed, ARunWhoseLockWasDeletedStopsAtItsNextStep) {
  const ToyRun toy({.stages = kDisturbed, .save_every = 0});
  const std::string endless = "--set stages.train.tokens=4M --set stages.train.save_every=0";
  const pid_t process = toy.start("run", 1, endless);
  ASSERT_TRUE(toy.wait_for_step("run", process, "train", 2)) << toy.log("run");
  fs::remove(toy.run_folder("run") + "/lock");
  int status = 0;
  waitpid(process, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 1) << toy.log("run");
  EXPECT_NE(toy.log("run").find("lock: deleted or replaced"), std::string::npos) << toy.log("run");
  EXPECT_FALSE(fs::exists(toy.run_folder("run") + "/checkpoints"));
}

TEST(Disturbed, ADestroyedModelIsNotExportedUnlessAskedFor) {
  ToyOptions options;
  options.stages = kDestroy;
  const ToyRun toy(options);
  const std::string to = "--set stages.export.folder=";
  EXPECT_EQ(toy.run("run", 1, to + toy.export_folder("run")), 1);
  EXPECT_NE(toy.log("run").find("stage train diverged: at step "), std::string::npos)
      << toy.log("run");
  EXPECT_FALSE(fs::exists(toy.export_folder("run")));
  ASSERT_EQ(toy.run("warned", 1,
                    "--set stages.train.on_divergence=warn " + to + toy.export_folder("warned")),
            0)
      << toy.log("warned");
  EXPECT_NE(toy.log("warned").find("on_divergence: warn goes on"), std::string::npos);
  const std::string verdict = "stage train ended worse than it began: loss ";
  for (const std::string& file :
       {toy.run_folder("warned") + "/report.txt", toy.export_folder("warned") + "/README.md"}) {
    EXPECT_NE(read_text_file(file).find(verdict), std::string::npos) << file;
  }
}

}  // namespace sala::test
