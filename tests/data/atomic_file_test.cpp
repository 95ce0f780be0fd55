// Files written whole: what they replace and what they never touch, and calls that fail.
#include "data/files/atomic_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "data/files/hdf5_file.h"
#include "data/files/safetensors.h"
#include "tests/faults/failing_calls.h"

namespace sala {
namespace {

namespace fs = std::filesystem;

class AtomicFiles : public testing::Test {
 protected:
  AtomicFiles() { fs::create_directories(folder_); }
  ~AtomicFiles() override { fs::remove_all(folder_); }

  static std::string error_of(const std::function<void()>& work) {
    try {
      work();
    } catch (const std::exception& error) {
      return error.what();
    }
    return "";
  }
  // Each way that we have to write a file whole.
  static std::vector<std::string> errors_of_all_writers(const std::string& path) {
    return {error_of([&] { write_file_atomically(path, "text"); }), error_of([&] {
              Hdf5File file = Hdf5File::create(path);
              file.set_attribute("a", int64_t{1});
              file.commit();
            }),
            error_of([&] {
              write_safetensors(path, {{"t", at::kFloat, {1}}},
                                [](const std::string&) { return at::zeros({1}); });
            })};
  }
  size_t num_entries() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), {}));
  }

  const std::string folder_ = testing::TempDir() + "sala_atomic_" + std::to_string(getpid());
};

TEST_F(AtomicFiles, FoldersAreMadeOneInAnother) {
  make_folder_durably(folder_ + "/a/b/c");
  make_folder_durably(folder_ + "/a/b/c/");
  EXPECT_TRUE(fs::is_directory(folder_ + "/a/b/c"));
  write_file_atomically(folder_ + "/file", "text");
  for (const char* path : {"/file", "/file/a/b"}) {
    EXPECT_NE(error_of([&] { make_folder_durably(folder_ + path); }).find("cannot make it"),
              std::string::npos)
        << path;
  }
}

TEST_F(AtomicFiles, OnlyARegularFileIsReplaced) {
  const std::string path = folder_ + "/it";
  for (const char* kind : {"a FIFO", "a folder", "a device"}) {
    const std::string what = kind;
    bool made = what != "a FIFO" || mkfifo(path.c_str(), 0600) == 0;
    if (what == "a folder") made = fs::create_directory(path);
    if (what == "a device") made = mknod(path.c_str(), S_IFCHR | 0600, makedev(1, 3)) == 0;
    if (!made) continue;  // a device needs root
    for (const std::string& error : errors_of_all_writers(path)) {
      EXPECT_NE(error.find(path + ": expected a file or nothing"), std::string::npos) << error;
      EXPECT_NE(error.find(kind), std::string::npos) << error;
    }
    EXPECT_EQ(num_entries(), 1u) << "something was left beside " << kind;
    fs::remove_all(path);
  }
  EXPECT_NE(error_of([&] { write_file_atomically("/dev/null", "x"); }), "");
}

TEST_F(AtomicFiles, ALinkIsFollowed) {
  const std::string link = folder_ + "/link", target = folder_ + "/target";
  std::ofstream(target) << "old";
  fs::create_symlink(target, link);
  write_file_atomically(link, "changed");
  EXPECT_TRUE(fs::is_symlink(link));
  EXPECT_EQ(read_text_file(target), "changed");
  fs::remove(target);
  EXPECT_NE(error_of([&] { write_file_atomically(link, "x"); }).find(link), std::string::npos);
  EXPECT_FALSE(fs::exists(target));
}

TEST_F(AtomicFiles, TheTemporaryNameIsNotFollowedEither) {
  const std::string path = folder_ + "/file", precious = folder_ + "/precious";
  std::ofstream(precious) << "mine";
  fs::create_symlink(precious, path + ".tmp");
  for (const std::string& error : errors_of_all_writers(path)) {
    EXPECT_NE(error.find(".tmp"), std::string::npos) << error;
  }
  EXPECT_EQ(read_text_file(precious), "mine");
  fs::remove(path + ".tmp");
  std::ofstream(path + ".tmp") << "left by a killed writer";
  EXPECT_EQ(errors_of_all_writers(path), std::vector<std::string>(3));
  EXPECT_FALSE(fs::exists(path + ".tmp"));
}

TEST_F(AtomicFiles, WhatIsNoFileIsNotReadOrWaitedFor) {
  const std::string path = folder_ + "/fifo";
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  EXPECT_NE(error_of([&] { read_text_file(path); }).find("found a FIFO"), std::string::npos);
  EXPECT_NE(error_of([&] { read_text_file(folder_); }).find("found a folder"), std::string::npos);
  EXPECT_NE(error_of([&] { read_text_file(folder_ + "/none"); }).find("No such file"),
            std::string::npos);
}

// Run in a process of its own by the next test, with calls that fail.
TEST(AtomicFileChild, DISABLED_Writes) {
  try {
    write_file_atomically(std::getenv("SALA_TEST_FILE"), std::string(100'000, 'n'));
  } catch (const std::exception& error) {
    std::ofstream(std::getenv("SALA_TEST_ERROR")) << error.what();
  }
}

TEST_F(AtomicFiles, AnyFailingCallKeepsTheOldFileAndSaysWhy) {
  const std::string path = folder_ + "/file", log = folder_ + "/error";
  setenv("SALA_TEST_FILE", path.c_str(), 1);
  setenv("SALA_TEST_ERROR", log.c_str(), 1);
  struct Case {
    const char *rule, *expected;  // the error, empty when the call is made again and all is well
  };
  for (const Case& c :
       {Case{"open */file.tmp 1 EMFILE", "ulimit -n"},
        Case{"write */file.tmp 1 ENOSPC", "free space"}, Case{"write */file.tmp 1 SHORT 3", ""},
        Case{"write */file.tmp 1 EINTR 5", ""}, Case{"write */file.tmp 1 EAGAIN 5", ""},
        Case{"write */file.tmp 1 EINTR -1", "Interrupted"}, Case{"fsync */file.tmp 1 EIO", "fsync"},
        Case{"rename */file 1 EROFS", "reading only"}}) {
    std::ofstream(path) << "old";
    const test::FailingCalls faults(c.rule);
    const pid_t child = fork();
    if (child == 0) {
      execl("/proc/self/exe", "tests", "--gtest_filter=AtomicFileChild.*", "--gtest_brief=1",
            "--gtest_also_run_disabled_tests", nullptr);
      _exit(127);
    }
    int status = 0;
    waitpid(child, &status, 0);
    ASSERT_EQ(status, 0) << c.rule;
    const std::string error = fs::exists(log) ? read_text_file(log) : "";
    EXPECT_EQ(error.empty(), c.expected[0] == 0) << c.rule << ": " << error;
    EXPECT_NE(error.find(c.expected), std::string::npos) << c.rule << ": " << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
    EXPECT_EQ(read_text_file(path).size(), error.empty() ? 100'000u : 3u) << c.rule;
    EXPECT_FALSE(fs::exists(path + ".tmp")) << c.rule;
    fs::remove(log);
  }
}

}  // namespace
}  // namespace sala
