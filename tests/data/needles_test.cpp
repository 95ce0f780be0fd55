// Needle prompts: exact length, needle at its depth, one haystack for all depths; bad sets named.
#include "data/needles.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "data/files/atomic_file.h"
#include "tests/data/test_store.h"

namespace sala {
namespace {

const char* const kSet =
    R"({"format": "sala-needles", "tokenizer_hash": "0123456789abcdef", "vocab_size": 1000,
        "items": [{"needle": [901, 902, 903], "question": [911, 912], "answer": [903], "text": "a"},
                  {"needle": [921], "question": [931], "answer": [941, 942]}]})";

TEST(Needles, PromptsHaveTheLengthAndTheNeedleAtItsDepth) {
  const TestFolder folder;
  write_file_atomically(folder / "n.json", kSet);
  write_store(folder / "hay.h5", numbered_documents(30, 200, 1, 900));
  const Source hay({"hay", {folder / "hay.h5"}, 1.0}, {});
  const NeedleSet set(folder / "n.json", {"0123456789abcdef", 1000});
  ASSERT_EQ(set.size(), 2);
  for (const std::int64_t length : {6, 7, 128, 9001}) {
    for (std::int64_t index = 0; index < 4; ++index) {
      std::vector<std::int32_t> haystack;
      for (const double depth : {0.0, 0.1, 0.5, 1.0}) {
        const NeedlePrompt prompt = set.prompt(hay, length, depth, index, 3);
        ASSERT_EQ(static_cast<std::int64_t>(prompt.ids.size()), length);
        const Needle& item = set[index % 2];
        EXPECT_EQ(prompt.answer, item.answer);
        const auto at = prompt.ids.begin() + prompt.needle_start;
        EXPECT_TRUE(std::equal(item.needle.begin(), item.needle.end(), at));
        EXPECT_TRUE(std::equal(item.question.rbegin(), item.question.rend(), prompt.ids.rbegin()));
        const auto room = length - static_cast<std::int64_t>(item.needle.size()) -
                          static_cast<std::int64_t>(item.question.size());
        EXPECT_NEAR(static_cast<double>(prompt.needle_start), depth * static_cast<double>(room),
                    0.5);
        std::vector<std::int32_t> rest(prompt.ids.begin(), at);
        rest.insert(rest.end(), at + static_cast<std::ptrdiff_t>(item.needle.size()),
                    prompt.ids.end() - static_cast<std::ptrdiff_t>(item.question.size()));
        EXPECT_EQ(std::count(rest.begin(), rest.end(), 0), 0);  // no EOS in the middle
        if (depth == 0.0) haystack = rest;
        EXPECT_EQ(rest, haystack);
      }
    }
  }
  expect_error([&] { set.prompt(hay, 5, 0.5, 0, 3); }, {"n.json", "5 tokens", "item 0"});
  expect_error([&] { set.prompt(hay, 50, 1.5, 0, 3); }, {"n.json", "depth"});
}

TEST(Needles, PromptsStartAsDocumentsDoAndHaystacksDoNotRepeatIt) {
  const TestFolder folder;
  std::string text = kSet;
  write_file_atomically(folder / "n.json",
                        text.insert(text.find("\"items\""), R"("start": [999], )"));
  TestStore store;
  for (std::int32_t d = 1; d <= 20; ++d) store.documents.push_back({999, d, d, d, 0});
  write_store(folder / "hay.h5", store);
  const Source hay({"hay", {folder / "hay.h5"}, 1.0}, {});
  const NeedleSet set(folder / "n.json", {"0123456789abcdef", 1000});
  for (const double depth : {0.0, 0.5, 1.0}) {
    const NeedlePrompt prompt = set.prompt(hay, 50, depth, 0, 3);
    EXPECT_EQ(prompt.ids.size(), 50u);
    EXPECT_EQ(prompt.ids.front(), 999);
    EXPECT_EQ(std::count(prompt.ids.begin(), prompt.ids.end(), 999), 1);
    EXPECT_EQ(prompt.ids[prompt.needle_start], 901);
    EXPECT_GE(prompt.needle_start, 1);
  }
}

TEST(Needles, BadSetsAreNamed) {
  const TestFolder folder;
  const std::string path = folder / "n.json";
  const auto expect_refused = [&](const std::string& text, const std::vector<std::string>& says) {
    write_file_atomically(path, text);
    expect_error([&] { NeedleSet set(path, {"0123456789abcdef", 1000}); }, says);
  };
  const auto replaced = [](const std::string& from, const std::string& to) {
    std::string text = kSet;
    return text.replace(text.find(from), from.size(), to);
  };
  expect_error([&] { NeedleSet set(folder / "none.json"); }, {"none.json", "No such file"});
  expect_refused("{\"format\": ", {"n.json", "not a needle set"});
  expect_refused("[]", {"n.json", "not a needle set"});
  expect_refused(replaced("sala-needles", "x"), {"n.json", "`format`"});
  expect_refused(replaced("0123", "4567"), {"n.json", "another tokenizer", "4567"});
  expect_refused(replaced("902", "1000"), {"n.json", "item 0", "`needle`", "id 1000"});
  expect_refused(replaced("[931]", "[]"), {"n.json", "item 1", "`question`"});
  expect_refused(replaced("\"answer\": [903]", "\"reply\": [903]"), {"n.json", "answer"});
}

}  // namespace
}  // namespace sala
