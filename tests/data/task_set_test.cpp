// Sets of tasks: prompts and their texts, scores as RULER's string matches, damaged files named.
#include "data/questions/task_set.h"

#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "data/files/atomic_file.h"
#include "tests/data/test_tasks.h"

namespace sala {
namespace {

TEST(TaskSet, PromptsAndTextsAreWhatWasWritten) {
  const TestFolder folder;
  TestTasks tasks;
  tasks.write(folder / "t.h5");
  const TaskSet set(folder / "t.h5", {"0123456789abcdef", 100});
  ASSERT_EQ(set.size(), 3);
  EXPECT_EQ(set.ids(0), (std::vector<std::int64_t>{5, 6, 7}));
  EXPECT_EQ(set.ids(2), (std::vector<std::int64_t>{9}));
  EXPECT_EQ(set.text({1, 2, 0, 99, 3}), "Hi there!");  // 0 is special, 99 has no text
  EXPECT_EQ(set.tasks(), (std::vector<std::string>{"niah", "qa"}));
  EXPECT_EQ(set.lengths(), (std::map<std::int64_t, std::int64_t>{{16, 2}, {32, 1}}));
  EXPECT_EQ(set.prompts_of("niah", 16, 9, 1), (std::vector<std::int64_t>{0}));
  EXPECT_EQ(set.stop_ids(), (std::vector<std::int64_t>{0}));
}

TEST(TaskSet, ScoresAreSharesOfReferencesOrWhetherAnyIsFound) {
  TaskPrompt prompt;
  prompt.references = {"Alpha", "12", "x y"};
  EXPECT_DOUBLE_EQ(answer_score(prompt, "ALPHA and 512"), 2.0 / 3);
  EXPECT_DOUBLE_EQ(answer_score(prompt, "x\ty"), 0);  // a control character is a line end
  EXPECT_DOUBLE_EQ(answer_score(prompt, ""), 0);
  EXPECT_DOUBLE_EQ(answer_score(prompt, "x y alpha 12"), 1);
  prompt.match_all = false;
  EXPECT_DOUBLE_EQ(answer_score(prompt, "it is alphabet"), 1);
  EXPECT_DOUBLE_EQ(answer_score(prompt, "none"), 0);
}

// What RULER's own scorer gives, in percent (tests/python/ruler_official_test.py compares).
TEST(TaskSet, ScoresAreThoseOfRulersOwnScorer) {
  const auto cases = nlohmann::json::parse(
      read_text_file(std::string(SALA_SOURCE_DIR) + "/tests/golden/ruler_scores.json"));
  ASSERT_FALSE(cases.empty());
  for (const auto& one : cases) {
    TaskPrompt prompt;
    prompt.match_all = one.at("match") == "all";
    prompt.references = one.at("references").get<std::vector<std::string>>();
    EXPECT_NEAR(answer_score(prompt, one.at("answer").get<std::string>()),
                one.at("score").get<double>() / 100, 1e-12)
        << one.dump();
  }
}

TEST(TaskSet, BadFilesAreNamed) {
  const TestFolder folder;
  const std::string path = folder / "t.h5";
  const auto expect_refused = [&](const std::function<void(TestTasks&)>& change,
                                  const std::vector<std::string>& says) {
    TestTasks tasks;
    change(tasks);
    tasks.write(path);
    expect_error([&] { TaskSet(path, {"0123456789abcdef", 100}).ids(0); }, says);
  };
  expect_error([&] { TaskSet set(folder / "none.h5"); }, {"none.h5"});
  expect_refused([](TestTasks& t) { t.format = "sala-token-store"; }, {"t.h5", "`format`"});
  expect_refused([](TestTasks& t) { t.hash = "ffff"; }, {"t.h5", "another tokenizer"});
  expect_refused(
      [](TestTasks& t) {
        t.tokens[1] = 100;
        t.vocab_size = 100;
      },
      {"t.h5", "prompt 0", "id 100"});
  expect_refused([](TestTasks& t) { t.change_after_hash = true; },
                 {"t.h5", "prompt 0", "checksum"});
  expect_refused([](TestTasks& t) { t.xxh3 = "0"; }, {"t.h5", "checksum"});
  expect_refused([](TestTasks& t) { t.index = "{"; }, {"t.h5", "`index`"});
  expect_refused([](TestTasks& t) { t.index = R"({"stop_ids": [], "prompts": []})"; },
                 {"t.h5", "fewer prompts"});
  expect_refused([](TestTasks& t) { t.prompt_offsets = {0, 3, 2, 6}; }, {"t.h5", "does not rise"});
  expect_refused([](TestTasks& t) { t.prompt_offsets = {0, 6}; }, {"t.h5", "`prompt_offsets`"});
  expect_refused([](TestTasks& t) { t.max_new_tokens = 14; }, {"t.h5", "prompt 0", "no room"});
  expect_refused([](TestTasks& t) { t.reference = "na\\u00efve"; },
                 {"t.h5", "prompt 0", "printable ASCII"});
  expect_refused([](TestTasks& t) { t.match = "most"; }, {"t.h5", "prompt 0", "`match`"});
  expect_refused([](TestTasks& t) { t.reference = ""; }, {"t.h5", "prompt 0", "printable ASCII"});
  TestTasks().write(path);
  std::filesystem::resize_file(path, std::filesystem::file_size(path) / 2);
  expect_error([&] { TaskSet set(path); }, {"t.h5"});
}

}  // namespace
}  // namespace sala
