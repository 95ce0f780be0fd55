// The lock of the run folder and the stop signals, with real processes.
#include "trainer/run_folder.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "data/atomic_file.h"
#include "tests/trainer/checkpoint_state.h"

namespace sala {
namespace {

ScratchFolder scratch(const std::string& name) {
  return ScratchFolder(testing::TempDir() + "sala_run_" + name + std::to_string(getpid()));
}

std::string refusal(const std::string& folder) {
  try {
    const RunLock lock(folder);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

// A process that holds the lock until it is killed. Returns when it has it.
pid_t start_holder(const std::string& folder) {
  int ready[2];
  if (pipe(ready) != 0) return -1;
  const pid_t child = fork();
  if (child == 0) {
    setenv("SLURM_JOB_ID", "4711", 1);
    const RunLock lock(folder);
    if (write(ready[1], "1", 1) != 1) _exit(1);
    while (true) pause();
  }
  char byte = 0;
  close(ready[1]);
  const bool got = read(ready[0], &byte, 1) == 1;
  close(ready[0]);
  return got ? child : -1;
}

TEST(RunLock, MakesTheFolderAndIsFreeAfterwards) {
  const ScratchFolder scratch_folder = scratch("free");
  const std::string folder = scratch_folder.path + "/a/b";
  EXPECT_EQ(refusal(folder), "");
  EXPECT_EQ(refusal(folder), "");
  EXPECT_TRUE(std::filesystem::exists(folder + "/lock"));
}

TEST(RunLock, ALiveProcessIsNamedAndADeadOneTakenOver) {
  const ScratchFolder run = scratch("live");
  const pid_t holder = start_holder(run.path);
  ASSERT_GT(holder, 0);
  const std::string error = refusal(run.path);
  EXPECT_NE(error.find("process " + std::to_string(holder) + " on "), std::string::npos) << error;
  EXPECT_NE(error.find("4711"), std::string::npos) << error;
  EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  kill(holder, SIGKILL);
  waitpid(holder, nullptr, 0);
  EXPECT_NE(read_text_file(run.path + "/lock").find(std::to_string(holder)), std::string::npos);
  EXPECT_EQ(refusal(run.path), "");
}

TEST(RunLock, UnreadableTextInTheLockFileDoesNotMatter) {
  const ScratchFolder run = scratch("text");
  for (const char* text : {"", "{", "{\"host\":\"\xff\xfe"}) {
    std::ofstream(run.path + "/lock") << text;
    EXPECT_EQ(refusal(run.path), "") << text;
  }
  std::ofstream(run.path + "/lock") << "a list of locks";
  EXPECT_NE(refusal(run.path).find("another file"), std::string::npos);
  EXPECT_EQ(read_text_file(run.path + "/lock"), "a list of locks");
}

TEST(RunLock, AFolderThatCannotBeMadeIsNamed) {
  const ScratchFolder run = scratch("file");
  std::ofstream(run.path + "/file") << "x";
  const std::string error = refusal(run.path + "/file/run");
  EXPECT_EQ(error.rfind(run.path + "/file/run: cannot make the run folder", 0), 0u) << error;
}

}  // namespace
}  // namespace sala
