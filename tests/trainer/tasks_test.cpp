// Intervals of task scores, and which tasks and lengths an evaluation asks.
#include "trainer/evaluation/tasks.h"

#include <gtest/gtest.h>

#include "tests/data/test_tasks.h"

namespace sala {
namespace {

// By hand from the formula: p = 1/2, n = 100: 0.5 ± 0.0962; p = 0, n = 10: up to 3.8416 / 13.8416.
TEST(Tasks, WilsonsIntervalHoldsTheScoreAndStaysInside) {
  const Interval half = wilson(0.5, 100);
  EXPECT_NEAR(half.low, 0.4038, 1e-4);
  EXPECT_NEAR(half.high, 0.5962, 1e-4);
  const Interval none = wilson(0, 10);
  EXPECT_NEAR(none.low, 0, 1e-12);
  EXPECT_NEAR(none.high, 3.8416 / 13.8416, 1e-6);
  for (const int64_t count : {1, 3, 500}) {
    for (const double mean : {0.0, 0.1, 0.77, 1.0}) {
      const Interval interval = wilson(mean, count);
      EXPECT_LE(interval.low, mean + 1e-12);
      EXPECT_GE(interval.high, mean - 1e-12);
      EXPECT_GE(interval.low, 0);
      EXPECT_LE(interval.high, 1);
    }
  }
}

TEST(Tasks, AllOrSomeOfWhatASetHas) {
  const TestFolder folder;
  TestTasks().write(folder / "t.h5");
  const TaskSet set(folder / "t.h5");
  EvaluateOptions options;
  options.tasks = {"all"};
  EXPECT_EQ(chosen_tasks(options, set), (std::vector<std::string>{"niah", "qa"}));
  EXPECT_EQ(chosen_lengths(options, set.lengths()), (std::vector<int64_t>{16, 32}));
  options.tasks = {"qa", "qa"};
  options.task_lengths = {32, 64};
  EXPECT_EQ(chosen_tasks(options, set), (std::vector<std::string>{"qa"}));
  EXPECT_EQ(chosen_lengths(options, set.lengths()), (std::vector<int64_t>{32}));
}

}  // namespace
}  // namespace sala
