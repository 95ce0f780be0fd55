// A batch job that comes back on another host than the one that was lost, and finds its own lock.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tests/faults/failing_calls.h"
#include "tests/runs/toy_run.h"

namespace sala::test {

namespace {

namespace fs = std::filesystem;

const char* kRequeued =
    "  - train: {tokens: 1K, row_length: 64, batch_tokens: 512, data: {a: 1}, lr: 1e-3}\n";

// What a host that was lost leaves: nobody there takes its text back.
void leave_lock(const ToyRun& toy, const std::string& name, const std::string& job) {
  fs::create_directories(toy.run_folder(name));
  std::ofstream(toy.run_folder(name) + "/lock")
      << R"({"host":"lost-node","job":")" << job << R"(","pid":4242})"
      << "\n";
}

}  // namespace

class RequeuedJob : public testing::Test {
 protected:
  void SetUp() override { setenv("LSB_JOBID", "77", 1); }
  void TearDown() override { unsetenv("LSB_JOBID"); }
};

TEST_F(RequeuedJob, TakesOverItsOwnLockWhereThereIsNoFlock) {
  const ToyRun toy({.stages = kRequeued, .save_every = 0});
  const FailingCalls no_locks("flock */lock 1 EOPNOTSUPP -1");
  leave_lock(toy, "own", "77");
  EXPECT_EQ(toy.run("own", 1), 0) << toy.log("own");
  for (const char* job : {"78", "none"}) {
    leave_lock(toy, "other", job);
    EXPECT_EQ(toy.run("other", 1), 1) << toy.log("other");
    EXPECT_NE(toy.log("other").find("on lost-node (batch job " + std::string(job) + ")"),
              std::string::npos)
        << toy.log("other");
  }
  unsetenv("LSB_JOBID");
  leave_lock(toy, "none", "none");
  EXPECT_EQ(toy.run("none", 1), 1) << toy.log("none");
}

TEST_F(RequeuedJob, WaitsForALockThatItsLostHostStillHolds) {
  const ToyRun toy({.stages = kRequeued, .save_every = 0});
  leave_lock(toy, "own", "77");
  leave_lock(toy, "other", "78");
  const FailingCalls still_held("flock */lock 1 EAGAIN 3");
  EXPECT_EQ(toy.run("own", 1), 0) << toy.log("own");
  EXPECT_NE(toy.log("own").find("of this job: waiting up to 120 s"), std::string::npos)
      << toy.log("own");
  EXPECT_EQ(toy.run("other", 1), 1) << toy.log("other");
  EXPECT_EQ(toy.log("other").find("waiting"), std::string::npos) << toy.log("other");
}

TEST_F(RequeuedJob, IsStoppedWhileItWaits) {
  const ToyRun toy({.stages = kRequeued, .save_every = 0});
  leave_lock(toy, "own", "77");
  const FailingCalls stopped("flock */lock 1 EAGAIN -1;flock */lock 3 SIGUSR1");
  EXPECT_EQ(toy.run("own", 1), 75) << toy.log("own");
}

// Where locks are no locks, two may come to hold one: the text is the later one's.
TEST_F(RequeuedJob, ARunWhoseLockWasTakenOverStops) {
  const ToyRun toy({.stages = kRequeued, .save_every = 0});
  const FailingCalls no_locks("flock */lock 1 ENOSYS -1");
  const pid_t process = toy.start("run", 1, "--set stages.train.tokens=4M");
  ASSERT_TRUE(toy.wait_for_step("run", process, "train", 2)) << toy.log("run");
  leave_lock(toy, "run", "77");
  int status = 0;
  waitpid(process, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 1) << toy.log("run");
  EXPECT_NE(toy.log("run").find("another run may be using this folder"), std::string::npos);
  std::ifstream lock(toy.run_folder("run") + "/lock");
  const std::string text((std::istreambuf_iterator<char>(lock)), {});
  EXPECT_NE(text.find("lost-node"), std::string::npos) << text;
}

}  // namespace sala::test
