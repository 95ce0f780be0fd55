// The lock of a folder and what is in a run folder beside it, with real processes.
#include "trainer/journal/folder_lock.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "data/files/atomic_file.h"
#include "data/files/hdf5_file.h"
#include "tests/trainer/checkpoint_state.h"
#include "trainer/journal/own_files.h"

namespace sala {
namespace {

std::string refusal(const std::string& folder) {
  try {
    const FolderLock lock(folder, "run.folder");
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
    const FolderLock lock(folder, "run.folder");
    if (write(ready[1], "1", 1) != 1) _exit(1);
    while (true) pause();
  }
  char byte = 0;
  close(ready[1]);
  const bool got = read(ready[0], &byte, 1) == 1;
  close(ready[0]);
  return got ? child : -1;
}

TEST(FolderLock, MakesTheFolderAndIsFreeAfterwards) {
  const ScratchFolder scratch_folder = scratch("run_free");
  const std::string folder = scratch_folder.path + "/a/b";
  EXPECT_EQ(refusal(folder), "");
  EXPECT_EQ(refusal(folder), "");
  EXPECT_TRUE(std::filesystem::exists(folder + "/lock"));
}

TEST(FolderLock, ALiveProcessIsNamedAndADeadOneTakenOver) {
  const ScratchFolder run = scratch("run_live");
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

// Another start of a job waits for one that a lost host has left, not for one that lives here.
TEST(FolderLock, ALiveProcessOfTheSameJobIsNotWaitedFor) {
  const ScratchFolder run = scratch("run_same_job");
  const pid_t holder = start_holder(run.path);
  ASSERT_GT(holder, 0);
  setenv("SLURM_JOB_ID", "4711", 1);
  const auto started = std::chrono::steady_clock::now();
  EXPECT_NE(refusal(run.path).find("in use by process"), std::string::npos);
  EXPECT_LT(std::chrono::steady_clock::now() - started, std::chrono::seconds(30));
  std::ofstream(run.path + "/lock") << R"({"host":"lost-node","job":"4711","pid":1})";
  EXPECT_THROW(FolderLock(run.path, "run.folder", std::chrono::seconds(1)), std::runtime_error);
  unsetenv("SLURM_JOB_ID");
  kill(holder, SIGKILL);
  waitpid(holder, nullptr, 0);
}

TEST(FolderLock, UnreadableTextInTheLockFileDoesNotMatter) {
  const ScratchFolder run = scratch("run_text");
  for (const char* text : {"", "{", "{\"host\":\"\xff\xfe"}) {
    std::ofstream(run.path + "/lock") << text;
    EXPECT_EQ(refusal(run.path), "") << text;
  }
  std::ofstream(run.path + "/lock") << "a list of locks";
  EXPECT_NE(refusal(run.path).find("another file"), std::string::npos);
  EXPECT_EQ(read_text_file(run.path + "/lock"), "a list of locks");
}

TEST(FolderLock, ALinkIsNotFollowed) {
  const ScratchFolder run = scratch("run_link");
  std::ofstream(run.path + "/diary") << "";
  std::filesystem::create_symlink(run.path + "/diary", run.path + "/lock");
  EXPECT_NE(refusal(run.path).find("that it is no link"), std::string::npos);
  EXPECT_EQ(read_text_file(run.path + "/diary"), "");
}

TEST(FolderLock, IsNotHeldAnyMoreWhenItsFileIsDeletedOrReplaced) {
  const ScratchFolder run = scratch("run_deleted");
  const FolderLock lock(run.path, "run.folder");
  EXPECT_TRUE(lock.is_held());
  EXPECT_NO_THROW(lock.check());
  std::filesystem::remove(run.path + "/lock");
  EXPECT_FALSE(lock.is_held());
  EXPECT_EQ(refusal(run.path), "") << "another run can take the folder";
  EXPECT_FALSE(lock.is_held()) << "the new file is not ours";
  EXPECT_THROW(lock.check(), std::runtime_error);
}

std::string refused_file(const std::string& folder) {
  try {
    check_own_files(folder);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

TEST(OwnFiles, OthersOfTheSameNamesAndEditedOnesAreRefused) {
  for (const std::string name : {kRecipeFile, kReportFile, kScoresFile}) {
    const ScratchFolder run = scratch("run_own");
    std::ofstream(run.path + "/" + name) << "mine";
    EXPECT_EQ(refused_file(run.path).rfind(run.path + "/" + name, 0), 0u) << name;
    EXPECT_EQ(read_text_file(run.path + "/" + name), "mine");
    std::filesystem::remove(run.path + "/" + name);
    if (name == kScoresFile) {
      Hdf5File file = Hdf5File::create(run.path + "/" + name);
      file.set_attribute("scores", std::string("of a game"));
      file.commit();
    } else {
      write_own_text(run.path + "/" + name, "ours\n");
      EXPECT_EQ(refused_file(run.path), "");
      std::ofstream(run.path + "/" + name, std::ios::app) << "and a note\n";
      EXPECT_THROW(write_own_text(run.path + "/" + name, "ours\n"), std::runtime_error);
    }
    EXPECT_EQ(refused_file(run.path).rfind(run.path + "/" + name, 0), 0u) << name;
  }
}

TEST(OwnFiles, MetricsOfOthersAreNotCut) {
  const ScratchFolder run = scratch("run_metrics");
  const auto refused = [&](const std::string& content) {
    std::ofstream(run.path + "/metrics.jsonl") << content;
    return !refused_file(run.path).empty();
  };
  EXPECT_TRUE(refused("my notes\n"));
  EXPECT_TRUE(refused("{\"loss\": 2}\n"));
  EXPECT_TRUE(refused("[1]"));
  for (const std::string& ours : {std::string(), std::string(9, '\0'), std::string("{\"dev"),
                                  std::string("{\"event\":\"start\"}\n{\"ev")}) {
    EXPECT_FALSE(refused(ours)) << ours;
  }
}

TEST(FolderLock, AFolderThatCannotBeMadeIsNamed) {
  const ScratchFolder run = scratch("run_file");
  std::ofstream(run.path + "/file") << "x";
  const std::string error = refusal(run.path + "/file/run");
  EXPECT_EQ(error.rfind(run.path + "/file/run: cannot make the folder", 0), 0u) << error;
}

}  // namespace
}  // namespace sala
