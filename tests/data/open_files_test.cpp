// Which files stay open.
#include "data/open_files.h"

#include <gtest/gtest.h>

#include <fstream>

#include "data/file_limit.h"
#include "tests/data/file_limit.h"
#include "tests/data/test_store.h"

namespace sala {
namespace {

std::vector<std::string> write_files(const std::string& folder, int count) {
  std::vector<std::string> paths;
  for (int64_t i = 0; i < count; ++i) {
    paths.push_back(folder + "/rank-" + std::to_string(i) + ".h5");
    Hdf5File file = Hdf5File::create(paths.back());
    file.create_dataset("x", Hdf5Type::kI64, {1});
    file.write("x", 0, 1, &i);
    file.commit();
  }
  return paths;
}

int64_t value_in(const Hdf5File& file) {
  int64_t value = -1;
  file.read("x", 0, 1, &value);
  return value;
}

class OpenFilesTest : public testing::Test {
 protected:
  static OpenFiles<Hdf5File> as_many_as_the_limit_allows() {
    return OpenFiles<Hdf5File>(static_cast<size_t>(share_of_open_files(64)));
  }
  const TestFolder folder_;
};

TEST_F(OpenFilesTest, TheOnesReadLastStayOpen) {
  const auto paths = write_files(folder_.path(), 12);
  const FileLimit limit(256);
  auto files = as_many_as_the_limit_allows();
  ASSERT_EQ(files.capacity(), 32u);
  for (int turn = 0; turn < 2; ++turn) {
    for (size_t i = 0; i < paths.size(); ++i) {
      EXPECT_EQ(value_in(files.open(paths[i])), static_cast<int64_t>(i));
    }
    EXPECT_EQ(files.num_open(), 12u);
  }
  files.close(paths[3]);
  EXPECT_EQ(files.num_open(), 11u);
  EXPECT_EQ(value_in(files.open(paths[3])), 3);
}

TEST_F(OpenFilesTest, NoMoreThanTheLimitAllowsAndFewerWhereTheSystemRefuses) {
  const auto paths = write_files(folder_.path(), 12);
  {
    const FileLimit limit(72);
    auto files = as_many_as_the_limit_allows();
    for (const std::string& path : paths) files.open(path);
    EXPECT_EQ(files.num_open(), 9u);
    EXPECT_EQ(value_in(files.open(paths[0])), 0);
  }
  auto files = as_many_as_the_limit_allows();
  for (int i = 0; i < 6; ++i) files.open(paths[static_cast<size_t>(i)]);
  std::vector<std::ifstream> others;
  const FileLimit limit(64);
  while (std::ifstream("/dev/null").is_open() && others.size() < 100) {
    others.emplace_back("/dev/null");
  }
  for (size_t i = 6; i < paths.size(); ++i) {
    EXPECT_EQ(value_in(files.open(paths[i])), static_cast<int64_t>(i));
  }
  EXPECT_LE(files.num_open(), 6u);
}

TEST_F(OpenFilesTest, TheLimitIsRaisedAsFarAsTheSystemLets) {
  const FileLimit limit(100);
  EXPECT_EQ(share_of_open_files(4096), 12);
  raise_file_limit();
  rlimit now{};
  getrlimit(RLIMIT_NOFILE, &now);
  EXPECT_EQ(now.rlim_cur, std::min<rlim_t>(limit.hard(), 1 << 16));
  EXPECT_EQ(now.rlim_max, limit.hard());
}

}  // namespace
}  // namespace sala
