// Which tasks and lengths an evaluation asks.
#include "trainer/evaluation/tasks.h"

#include <gtest/gtest.h>

#include "tests/data/test_tasks.h"

namespace sala {
namespace {

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
