// Stopping a whole job from outside: signals at any moment, a reader that goes away, ranks that are
// stopped, and ranks that were given different things.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <thread>

#include "data/files/atomic_file.h"
#include "tests/runs/toy_run.h"

namespace sala::test {

namespace {

namespace fs = std::filesystem;

const char* kStopped =
    "  - align: {tokens: 4M, row_length: 64, batch_tokens: 512, data: {a: 1, b: 1}, lr: 1e-3}\n";

const std::string kProgram = SALA_BIN_DIR "/sala-train ";
const std::string kLocal = SALA_SOURCE_DIR "/launch/run_local.sh ";

void rest(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

// A command in a process group of its own, its output in a file of the toy.
class Job {
 public:
  Job(const ToyRun& toy, const std::string& name, const std::string& command)
      : log_(toy.folder() + "/" + name + ".log"), process_(fork()) {
    if (process_ != 0) return;
    setpgid(0, 0);
    setenv("OMP_NUM_THREADS", "1", 1);
    setenv("SALA_BUILD", fs::path(SALA_BIN_DIR).parent_path().c_str(), 1);
    setenv("SALA_WATCHDOG_SECONDS", "1.5", 1);
    const int log = open(log_.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    dup2(log, 1);
    dup2(log, 2);
    const std::string line = "exec " + command;
    execl("/bin/bash", "bash", "-c", line.c_str(), nullptr);
    _exit(127);
  }
  pid_t process() const { return process_; }
  // Exit code, or the negative signal that ended it. Killed, with its group, after a time.
  int end() {
    int status = 0;
    for (double waited = 0; waited < 30; waited += 0.02, rest(0.02)) {
      if (waitpid(process_, &status, WNOHANG) != process_) continue;
      return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    }
    kill(-process_, SIGKILL);
    waitpid(process_, &status, 0);
    return -1000;
  }
  std::string log() const { return read_text_file(log_); }

 private:
  std::string log_;
  pid_t process_;
};

std::string run_folder_of(const ToyRun& toy, const std::string& name) {
  return " --set run.folder=" + toy.run_folder(name);
}

size_t count_of(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++count;
  return count;
}

}  // namespace

TEST(Stop, ASignalAtAnyEarlyMomentIsACleanStop) {
  const ToyRun toy({.stages = kStopped, .save_every = 0});
  std::mt19937 random(29);
  const int signals[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1};
  for (int i = 0; i < 4; ++i) {
    const double moment = 0.02 + 0.6 * static_cast<double>(random()) / 4294967296.0;
    std::vector<std::unique_ptr<Job>> jobs;
    const std::string direct = "direct" + std::to_string(i), local = "local" + std::to_string(i);
    jobs.push_back(
        std::make_unique<Job>(toy, direct, kProgram + toy.recipe() + run_folder_of(toy, direct)));
    if (i % 2 == 0) {
      jobs.push_back(std::make_unique<Job>(
          toy, local, kLocal + toy.recipe() + " -n 2" + run_folder_of(toy, local)));
    }
    rest(moment);  // 20 ms: bash stands
    for (const auto& job : jobs) kill(job->process(), signals[i]);
    for (const auto& job : jobs) {
      EXPECT_EQ(job->end(), 75) << moment << "\n" << job->log();
      EXPECT_EQ(job->log().find("abort"), std::string::npos) << job->log();
    }
  }
}

TEST(Stop, AReaderThatGoesAwayIsNoEnd) {
  const ToyRun toy({.stages = kStopped, .save_every = 0});
  const std::string tail = " --set stages.align.tokens=16K";
  Job direct(toy, "direct",
             "/bin/bash -c '" + kProgram + toy.recipe() + tail + run_folder_of(toy, "direct") +
                 " | head -n 1; exit ${PIPESTATUS[0]}'");
  Job local(toy, "local",
            "/bin/bash -c '" + kLocal + toy.recipe() + " -n 2" + tail +
                run_folder_of(toy, "local") + " 2>&1 | head -n 1; exit ${PIPESTATUS[0]}'");
  // Without standard streams the next file opened would be standard output.
  Job closed(toy, "closed",
             kProgram + toy.recipe() + tail + run_folder_of(toy, "closed") + " <&- >&- 2>&-");
  for (Job* job : {&direct, &local, &closed}) EXPECT_EQ(job->end(), 0) << job->log();
  for (const char* name : {"direct", "local", "closed"}) {
    EXPECT_EQ(toy.events(name, "end").size(), 1u) << name;
    std::ifstream lines(toy.run_folder(name) + "/metrics.jsonl");
    for (std::string line; std::getline(lines, line);) EXPECT_EQ(line.front(), '{') << name;
  }
}

TEST(Stop, AStoppedRankEndsTheJobAndIsNamedWithItsStage) {
  const ToyRun toy({.stages = kStopped, .save_every = 0});
  Job job(toy, "run", kLocal + toy.recipe() + " -n 2" + run_folder_of(toy, "run"));
  ASSERT_TRUE(toy.wait_for_step("run", job.process(), "align", 30)) << job.log();
  kill(toy.first_rank("run"), SIGSTOP);
  EXPECT_EQ(job.end(), 1) << job.log();
  const std::string log = job.log();
  EXPECT_NE(log.find("sala-train: rank 0 on "), std::string::npos) << log;
  EXPECT_NE(log.find("(stage align, step "), std::string::npos) << log;
  EXPECT_NE(log.find("no sign of life"), std::string::npos) << log;
}

TEST(Stop, ASecondSignalEndsAJobThatCannotStop) {
  const ToyRun toy({.stages = kStopped, .save_every = 0});
  Job job(
      toy, "run",
      "env SALA_WATCHDOG_SECONDS=0 " + kLocal + toy.recipe() + " -n 2" + run_folder_of(toy, "run"));
  ASSERT_TRUE(toy.wait_for_step("run", job.process(), "align", 3)) << job.log();
  const pid_t rank = toy.first_rank("run");
  kill(rank, SIGSTOP);
  kill(job.process(), SIGTERM);
  rest(0.3);
  kill(job.process(), SIGTERM);
  EXPECT_NE(job.end(), -1000) << job.log();
  // Without a process 1 that reaps, what has died stays in the table.
  const std::string stat = "/proc/" + std::to_string(rank) + "/stat";
  const auto left = [&] {
    return fs::exists(stat) && read_text_file(stat).find(") Z") == std::string::npos;
  };
  for (int i = 0; i < 100 && left(); ++i) rest(0.05);
  EXPECT_FALSE(left()) << "a rank is left";
}

TEST(DifferingRanks, RefuseToStartTogether) {
  const ToyRun toy({.stages = kStopped, .save_every = 0});
  const std::string own = kProgram + toy.recipe();
  const std::vector<std::pair<std::string, std::vector<std::string>>> cases = {
      {"env ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=2 " + own +
           " --set stages.align.lr=2e-3 --set stages.align.save_every=3",
       {"rank 1 (", "stages[0].align.lr: 0.001 on rank 0, 0.002 on rank 1", "save_every",
        "CPU capability", "DEFAULT on rank 1", "device: CPU, 1 threads on rank 0, CPU, 2 threads"}},
      {kProgram + toy.folder() + "/none.yaml", {"rank 1 (", "none.yaml"}}};
  for (size_t i = 0; i < cases.size(); ++i) {
    const std::string name = "run" + std::to_string(i), folder = run_folder_of(toy, name);
    Job job(toy, name,
            "mpirun --allow-run-as-root --oversubscribe --bind-to none -np 1 " + own + folder +
                " : -np 1 " + cases[i].first + folder);
    EXPECT_GT(job.end(), 0) << job.log();
    EXPECT_EQ(count_of(job.log(), "sala-train: "), 1u) << job.log();
    for (const std::string& part : cases[i].second) {
      EXPECT_NE(job.log().find(part), std::string::npos) << part << "\n" << job.log();
    }
    EXPECT_FALSE(fs::exists(toy.run_folder(name)));
  }
}

// Node-local copies: the same paths hold other bytes for rank 1, by a mount that it alone sees.
// Token stores are read by every rank, and refused; weights come from rank 0.
TEST(DifferingRanks, TrainOnNoOtherBytesUnderTheSameNames) {
  if (std::system("unshare --mount true 2> /dev/null") != 0) GTEST_SKIP() << "needs mounts";
  const ToyRun toy({.stages = kStopped, .save_every = 0});
  const std::string weights = toy.folder() + "/source/model.safetensors";
  const std::string other = toy.folder() + "/other";
  const std::string recipe = kProgram + toy.recipe() + " --set stages.align.tokens=1K";
  for (const std::string& path : {weights, toy.folder() + "/b.h5"}) {
    if (path == weights) {
      std::string bytes = read_text_file(path);
      bytes[bytes.size() - 3] ^= 1;
      write_file_atomically(other, bytes);
    } else {
      fs::copy_file(toy.folder() + "/a.h5", other, fs::copy_options::overwrite_existing);
    }
    const std::string name = fs::path(path).stem().string(), folder = run_folder_of(toy, name);
    Job job(toy, name,
            "mpirun --allow-run-as-root --oversubscribe --bind-to none -np 1 " + recipe + folder +
                " : -np 1 unshare --mount bash -c 'mount --bind " + other + " " + path +
                " && exec " + recipe + folder + "'");
    if (path == weights) {
      EXPECT_EQ(job.end(), 0) << job.log();
      continue;
    }
    EXPECT_GT(job.end(), 0) << job.log();
    EXPECT_EQ(count_of(job.log(), "sala-train: "), 1u) << job.log();
    EXPECT_NE(job.log().find(path), std::string::npos) << job.log();
    EXPECT_NE(job.log().find("on rank 1"), std::string::npos) << job.log();
  }
}

TEST(DifferingRanks, AMistakeOfAllIsToldOnce) {
  const ToyRun toy({.stages = kStopped, .save_every = 0});
  Job job(toy, "run", kLocal + toy.folder() + "/none.yaml -n 2");
  EXPECT_EQ(job.end(), 2);
  EXPECT_EQ(count_of(job.log(), "\n"), 1u) << job.log();
  EXPECT_EQ(job.log().find("rank"), std::string::npos) << job.log();
}

}  // namespace sala::test
