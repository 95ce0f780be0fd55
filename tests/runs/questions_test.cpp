// Multiple choice and tasks in evaluations: the same for any number of ranks; and models by
// themselves, with --evaluate.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "tests/data/test_tasks.h"
#include "tests/runs/toy_run.h"

namespace sala::test {

namespace {

namespace fs = std::filesystem;

const char* const kAskingStages =
    "  - align: {tokens: 1K, row_length: 64, batch_tokens: 512, data: {a: 1}, lr: 3e-3}\n"
    "  - swap: {layers: [0, 2], force_ends: true}\n"
    "  - distill: {tokens: 2K, row_length: 128, batch_tokens: 512, data: {a: 1}, lr: 2e-3}\n"
    "  - evaluate: {sources: [a], tokens: 1K, row_length: 128, choices: [quiz], choices_items: 30, "
    "tasks: [all], task_items: 3}\n";

// Questions of two tasks about the toy's ids; every fourth has choices of several ids.
std::string quiz() {
  std::string items;
  for (int i = 0; i < 90; ++i) {
    const auto id = [&](int n) { return std::to_string(1 + (i * 13 + n * 29) % 95); };
    const std::string context = "[" + id(1) + ", " + id(2) + ", " + id(3) + "]";
    const std::string tail = i % 4 == 0 ? ", " + id(5) + "]" : "]";
    items += std::string(i == 0 ? "" : ",") + R"({"task": ")" + (i % 2 == 0 ? "even" : "odd") +
             R"(", "answer": )" + std::to_string(i % 3) + R"(, "contexts": [)" + context + ", " +
             context + ", " + context + R"(], "choices": [[)" + id(7) + "], [" + id(8) + tail +
             ", [" + id(9) + R"(]], "choice_chars": [3, 9, 4]})";
  }
  return R"({"format": "sala-choices", "vocab_size": 96, "tokenizer_hash": ")" +
         xxh3_64_hex("{}", 2) + R"(", "items": [)" + items + "]}";
}

// Writes both files; the arguments that make the recipe take them.
std::string write_questions(const ToyRun& toy) {
  std::ofstream(toy.folder() + "/quiz.json") << quiz();
  TestTasks tasks;
  tasks.hash = xxh3_64_hex("{}", 2);
  tasks.vocab_size = 96;
  tasks.reference = R"(t", "zz)";  // two of them: any word has the first, none the other
  tasks.words.assign(96, "t ");
  tasks.words[0] = "";
  tasks.write(toy.folder() + "/tasks.h5");
  return "--set 'data.choices=[" + toy.folder() + "/quiz.json]' --set data.tasks=" + toy.folder() +
         "/tasks.h5";
}

void expect_shares(const nlohmann::json& measured) {
  const auto& choices = measured.at("choices");
  ASSERT_EQ(choices.size(), 2u);
  for (const char* name : {"quiz/even", "quiz/odd"}) {
    const auto& c = choices.at(name);
    EXPECT_EQ(c.at("count"), 30);
    EXPECT_DOUBLE_EQ(c.at("chance"), 1.0 / 3);
    EXPECT_GT(c.at("acc_se"), 0.0);
    for (const char* key : {"acc", "acc_norm"}) {
      const double hits = c.at(key).get<double>() * 30;
      EXPECT_NEAR(hits, std::round(hits), 1e-9);
    }
  }
  ASSERT_EQ(measured.at("tasks").size(), 3u);
  for (const auto& task : measured.at("tasks")) {
    EXPECT_EQ(task.at("count"), 1);
    EXPECT_LE(task.at("low"), task.at("score"));
    EXPECT_GE(task.at("high"), task.at("score"));
  }
  EXPECT_TRUE(measured.at("task_mean").contains("16"));
  EXPECT_TRUE(measured.at("task_mean").contains("32"));
}

nlohmann::json read_json(const std::string& path) {
  std::ifstream file(path);
  return nlohmann::json::parse(file);
}

}  // namespace

TEST(Questions, RanksDoNotChangeAnswersAndFoldersAreMeasuredAlone) {
  ToyRun toy({.stages = kAskingStages});
  const std::string files = write_questions(toy);
  ASSERT_EQ(toy.run("one", 1, files), 0) << toy.log("one");
  ASSERT_EQ(toy.run("three", 3, files + " --set run.sharding=zero3"), 0) << toy.log("three");
  const auto one = toy.events("one", "evaluate"), three = toy.events("three", "evaluate");
  ASSERT_EQ(one.size(), 3u);  // the teacher, after the swap, after distillation
  ASSERT_EQ(three.size(), one.size());
  for (size_t i = 0; i < one.size(); ++i) {
    expect_shares(one[i]);
    const auto& source = one[i].at("sources").at("a");
    EXPECT_EQ(source.contains("top1"), one[i].at("model") == "student");
    if (source.contains("top1")) {
      EXPECT_GT(source.at("top1"), 0.0);
      EXPECT_LT(source.at("top1"), 1.0);
      double tokens = 0, agreed = 0;
      for (const auto& bucket : source.at("by_position")) {
        tokens += bucket.at("tokens").get<double>();
        agreed += bucket.at("tokens").get<double>() * bucket.at("top1").get<double>();
      }
      EXPECT_EQ(tokens, source.at("tokens").get<double>());
      EXPECT_NEAR(agreed / tokens, source.at("top1").get<double>(), 1e-9);
    }
  }
  // The teacher has no rounding of training: all ranks measure the same model.
  EXPECT_EQ(one[0].at("choices"), three[0].at("choices"));
  EXPECT_EQ(one[0].at("tasks"), three[0].at("tasks"));

  // The last checkpoint is the model of the last evaluation.
  const std::string out = toy.folder() + "/alone.json";
  const std::string checkpoint = toy.checkpoint_of("one", "done");
  ASSERT_EQ(toy.run("alone", 2, files + " --evaluate " + checkpoint + " --out " + out), 0)
      << toy.log("alone");
  EXPECT_FALSE(fs::exists(toy.run_folder("alone")));
  const nlohmann::json alone = read_json(out).at("evaluation");
  EXPECT_EQ(alone.at("choices"), one[2].at("choices"));
  EXPECT_EQ(alone.at("tasks"), one[2].at("tasks"));
  const double loss = one[2].at("sources").at("a").at("loss");
  EXPECT_NEAR(alone.at("sources").at("a").at("loss"), loss, 1e-5 * loss);

  // The source itself: it is its own teacher.
  ASSERT_EQ(toy.run("self", 1, files + " --evaluate " + toy.folder() + "/source --out " + out), 0)
      << toy.log("self");
  const nlohmann::json self = read_json(out).at("evaluation");
  EXPECT_EQ(self.at("sources").at("a").at("top1"), 1.0);
  EXPECT_NEAR(self.at("sources").at("a").at("kl"), 0, 1e-6);
  EXPECT_EQ(self.at("choices"), one[0].at("choices"));

  EXPECT_NE(toy.run("none", 1, files + " --evaluate " + toy.folder()), 0);
  EXPECT_NE(toy.log("none").find("expected a model folder (config.json) or a checkpoint"),
            std::string::npos)
      << toy.log("none");
}

}  // namespace sala::test
