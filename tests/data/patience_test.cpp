// How long a reader asks a disk that refuses, and what ends its patience.
#include "data/stores/patience.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <chrono>
#include <thread>

namespace sala {
namespace {

class PatienceTest : public ::testing::Test {
 protected:
  void SetUp() override { before_ = set_patience(with({0.01, 0.01, 0.01})); }
  void TearDown() override { set_patience(before_); }

  Patience with(const std::vector<double>& pauses) {
    return {.pauses = pauses,
            .tell = [this](const std::string& line) { told_.push_back(line); },
            .gives_up = [this] { return gives_up_; }};
  }
  // A file that fails so many times.
  int read(int num_failures, int code) {
    return read_patiently(
        [&] {
          if (++num_reads_ <= num_failures) throw FileError("a.h5", "read it", code);
          return 7;
        },
        [&] { ++num_reopened_; });
  }

  Patience before_;
  std::vector<std::string> told_;
  bool gives_up_ = false;
  int num_reads_ = 0, num_reopened_ = 0;
};

TEST_F(PatienceTest, TriesThreeTimesMoreAndSaysItOnce) {
  EXPECT_EQ(read(3, ESTALE), 7);
  EXPECT_EQ(num_reopened_, 3);
  ASSERT_EQ(told_.size(), 1u);
  EXPECT_EQ(told_[0].rfind("a.h5: cannot read it: Stale file handle", 0), 0u) << told_[0];
  num_reads_ = 0;
  EXPECT_THROW(read(4, EIO), FileError);
  EXPECT_EQ(num_reads_, 4);
}

TEST_F(PatienceTest, OtherErrorsAreThrownAtOnce) {
  for (const int code : {ENOENT, EACCES, EMFILE, ENOMEM}) {
    num_reads_ = 0;
    EXPECT_THROW(read(1, code), FileError);
  }
  EXPECT_THROW(read_patiently([]() -> int { throw std::runtime_error("damaged"); }, [] {}),
               std::runtime_error);
  EXPECT_EQ(num_reopened_, 0);
  EXPECT_TRUE(told_.empty());
}

TEST_F(PatienceTest, EndsWhenARunStopsOrAThreadIsToEnd) {
  set_patience(with({60}));
  const auto started = std::chrono::steady_clock::now();
  std::jthread thread([&](const std::stop_token& stop) {
    end_patience_with(stop);
    EXPECT_THROW(read(1, EIO), FileError);
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  thread = {};
  num_reads_ = 0;
  gives_up_ = true;
  EXPECT_THROW(read(1, EIO), FileError);
  EXPECT_LT(std::chrono::steady_clock::now() - started, std::chrono::seconds(30));
}

}  // namespace
}  // namespace sala
