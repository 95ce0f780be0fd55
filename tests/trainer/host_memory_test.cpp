// How much memory of the host is free, by the files of a system that this writes.
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/trainer/recipe_cases.h"
#include "trainer/ranks/device_info.h"

namespace sala {
namespace {

class HostMemory : public ::testing::Test {
 protected:
  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(folder_ / path).parent_path());
    folder_.write(path, text);
  }
  double available() const { return available_host_bytes(folder_ / ""); }
  recipe_cases::TemporaryFolder folder_;
};

TEST_F(HostMemory, IsWhatTheSystemSaysWithoutAControlGroup) {
  EXPECT_EQ(available(), 0);  // unknown
  write("proc/meminfo", "MemTotal:       8000 kB\nMemAvailable:   4000 kB\nBuffers:  1 kB\n");
  EXPECT_EQ(available(), 4000 * 1024);
  write("sys/fs/cgroup/memory.max", "max\n");
  write("sys/fs/cgroup/memory.current", "3000000\n");
  EXPECT_EQ(available(), 4000 * 1024);
}

// Files that were read or written lately count as the group's, but go when memory is asked for.
TEST_F(HostMemory, OfAControlGroupLacksNotWhatItsCachesHold) {
  write("proc/meminfo", "MemAvailable: 4000 kB\n");
  write("sys/fs/cgroup/memory.max", "3000000\n");
  write("sys/fs/cgroup/memory.current", "2900000\n");
  write("sys/fs/cgroup/memory.stat",
        "anon 100000\nfile 2800000\nactive_file 800000\n"
        "inactive_file 2000000\n");
  EXPECT_EQ(available(), 2900000);
  write("sys/fs/cgroup/memory.stat", "anon 2900000\nactive_file 0\ninactive_file 0\n");
  EXPECT_EQ(available(), 100000);
  write("sys/fs/cgroup/memory.current", "3000000\n");
  EXPECT_EQ(available(), 1);  // known, and nothing
}

}  // namespace
}  // namespace sala
