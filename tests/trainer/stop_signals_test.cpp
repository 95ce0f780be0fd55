// What signals do to a process that catches stop requests: in a child process each, since handlers
// and flag stay for the rest of a process.
#include "trainer/ranks/stop_signals.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <functional>

#include "trainer/ranks/launch_folder.h"

namespace sala {
namespace {

// The child's exit code, or the negative number of the signal that ended it.
int end_of_child(const std::function<int()>& work) {
  const pid_t child = fork();
  if (child == 0) _exit(work());
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

int end_after(const std::vector<int>& signals) {
  return end_of_child([&] {
    catch_stop_signals();
    if (stop_requested()) return 1;
    for (const int number : signals) raise(number);
    return stop_requested() ? kExitCheckpointed : 2;
  });
}

TEST(StopSignals, EachSetsTheFlag) {
  EXPECT_EQ(end_after({}), 2);
  EXPECT_EQ(end_after({SIGTERM}), kExitCheckpointed);
  EXPECT_EQ(end_after({SIGUSR1}), kExitCheckpointed);
  EXPECT_EQ(end_after({SIGINT}), kExitCheckpointed);
  EXPECT_EQ(end_after({SIGHUP}), kExitCheckpointed);
  EXPECT_EQ(end_after({SIGTERM, SIGTERM, SIGUSR1, SIGHUP, SIGHUP}), kExitCheckpointed);
  EXPECT_EQ(end_after({SIGINT, SIGINT}), -SIGINT);
}

TEST(StopSignals, OneThatWasHeldBackIsTaken) {
  for (const int number : {SIGTERM, SIGUSR1, SIGINT, SIGHUP}) {
    const int end = end_of_child([&] {
      sigset_t held;
      sigemptyset(&held);
      sigaddset(&held, number);
      sigprocmask(SIG_BLOCK, &held, nullptr);
      raise(number);
      catch_stop_signals();
      return stop_requested() ? kExitCheckpointed : 2;
    });
    EXPECT_EQ(end, kExitCheckpointed) << strsignal(number);
  }
}

TEST(StopSignals, UnderNohupAHangUpIsNone) {
  const int end = end_of_child([] {
    signal(SIGHUP, SIG_IGN);
    catch_stop_signals();
    raise(SIGHUP);
    return stop_requested() ? 1 : 0;
  });
  EXPECT_EQ(end, 0);
}

TEST(StopSignals, AClosedPipeAndAFileAtItsLimitAreErrorsOfTheWrite) {
  const int end = end_of_child([] {
    catch_stop_signals();
    int ends[2];
    if (pipe(ends) != 0 || close(ends[0]) != 0) return 1;
    if (write(ends[1], "x", 1) != -1 || errno != EPIPE) return 2;
    const rlimit limit{16, 16};
    FILE* file = tmpfile();
    if (!file || setrlimit(RLIMIT_FSIZE, &limit) != 0) return 3;
    if (pwrite(fileno(file), "x", 1, 16) != -1 || errno != EFBIG) return 4;
    return stop_requested() ? 5 : 0;
  });
  EXPECT_EQ(end, 0);
}

TEST(LaunchFolder, ARenamedFileAsksToStopAndTheCodeIsLeft) {
  char folder[] = "/tmp/sala_launch_XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  const std::string path = folder;
  const auto in_folder = [&](const std::function<int()>& work) {
    return end_of_child([&] {
      setenv("SALA_LAUNCH_FOLDER", folder, 1);
      return work();
    });
  };
  EXPECT_EQ(in_folder([] { return stop_requested() ? 1 : 0; }), 0);
  std::filesystem::create_directory(path + "/stop");
  EXPECT_EQ(in_folder([] { return stop_requested() ? 1 : 0; }), 1);
  EXPECT_EQ(in_folder([] { return code_for_launcher(75, true); }), 0);
  EXPECT_TRUE(std::filesystem::exists(path + "/code"));
  EXPECT_EQ(in_folder([] { return code_for_launcher(75, false); }), 0);
  std::filesystem::remove_all(path);
  EXPECT_EQ(in_folder([] { return code_for_launcher(75, true); }), 75);  // cannot be left
  EXPECT_EQ(end_of_child([] { return code_for_launcher(75, false); }), 75);
}

}  // namespace
}  // namespace sala
