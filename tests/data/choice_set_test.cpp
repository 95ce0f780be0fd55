// Multiple-choice sets: questions as documents, picks as lm-evaluation-harness makes them, bad sets
// named.
#include "data/questions/choice_set.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "data/files/atomic_file.h"
#include "tests/data/test_store.h"

namespace sala {
namespace {

const char* const kSet =
    R"({"format": "sala-choices", "tokenizer_hash": "0123456789abcdef", "vocab_size": 1000,
        "items": [{"task": "b", "answer": 1, "contexts": [[11, 12], [11, 12]],
                   "choices": [[901], [902, 903]], "choice_chars": [2, 8]},
                  {"task": "a", "answer": 0, "contexts": [[21], [22], [23]],
                   "choices": [[31], [32], [33]], "choice_chars": [1, 1, 1]}]})";

ChoiceSet read_set(const TestFolder& folder) {
  write_file_atomically(folder / "c.json", kSet);
  return ChoiceSet(folder / "c.json", {"0123456789abcdef", 1000});
}

TEST(ChoiceSet, AChoiceIsADocumentWhoseTargetsAreItsIds) {
  const TestFolder folder;
  const ChoiceSet set = read_set(folder);
  ASSERT_EQ(set.size(), 2);
  const Row row = choice_row(set[0].choices[1]);
  EXPECT_EQ(row.ids, (std::vector<std::int32_t>{11, 12, 902}));
  EXPECT_EQ(row.targets, (std::vector<std::int32_t>{0, 902, 903}));
  EXPECT_EQ(row.loss_weight, (std::vector<float>{0, 1, 1}));
  EXPECT_EQ(row.position, (std::vector<std::int32_t>{0, 1, 2}));
  EXPECT_EQ(set.longest_document(), 4);
  EXPECT_EQ(set.tasks(), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(choice_set_name("x/arc.easy.json"), "arc.easy");
}

// Log-likelihoods -4 and -8: the first is likelier, but by the character the second is (-2 of 2
// characters each -2.0, -8 of 8 each -1.0).
TEST(ChoiceSet, PicksBySumAndByCharacterTheFirstAmongEquals) {
  const TestFolder folder;
  const ChoiceSet set = read_set(folder);
  const ChoicePicks picks = pick_choices(set[0], {-4, -8});
  EXPECT_EQ(picks.by_sum, 0);
  EXPECT_EQ(picks.by_char, 1);
  const ChoicePicks equal = pick_choices(set[1], {-2, -1, -1});
  EXPECT_EQ(equal.by_sum, 1);
  EXPECT_EQ(equal.by_char, 1);
}

TEST(ChoiceSet, AShareOfTheQuestionsDependsOnTheSeedAlone) {
  const TestFolder folder;
  std::string items;
  for (int i = 0; i < 40; ++i) {
    items += std::string(i == 0 ? "" : ",") +
             R"({"task": "t", "answer": 0, "contexts": [[1], [1]], "choices": [[2], [3]],
                 "choice_chars": [1, 1]})";
  }
  write_file_atomically(folder / "c.json",
                        R"({"format": "sala-choices", "tokenizer_hash": "a", "vocab_size": 9,
                            "items": [)" +
                            items + "]}");
  const ChoiceSet set(folder / "c.json");
  const auto some = set.questions_of("t", 10, 3);
  EXPECT_EQ(some.size(), 10u);
  EXPECT_TRUE(std::is_sorted(some.begin(), some.end()));
  EXPECT_EQ(std::adjacent_find(some.begin(), some.end()), some.end());
  EXPECT_EQ(some, set.questions_of("t", 10, 3));
  EXPECT_NE(some, set.questions_of("t", 10, 4));
  EXPECT_EQ(set.questions_of("t", 100, 3).size(), 40u);
  EXPECT_TRUE(set.questions_of("u", 100, 3).empty());
}

TEST(ChoiceSet, BadSetsAreNamed) {
  const TestFolder folder;
  const std::string path = folder / "c.json";
  const auto expect_refused = [&](const std::string& text, const std::vector<std::string>& says) {
    write_file_atomically(path, text);
    expect_error([&] { ChoiceSet set(path, {"0123456789abcdef", 1000}); }, says);
  };
  const auto replaced = [](const std::string& from, const std::string& to) {
    std::string text = kSet;
    return text.replace(text.find(from), from.size(), to);
  };
  const std::string whole = kSet;
  expect_error([&] { ChoiceSet set(folder / "none.json"); }, {"none.json", "No such file"});
  expect_refused(whole.substr(0, whole.size() / 2), {"c.json", "not a multiple-choice set"});
  expect_refused(replaced("sala-choices", "sala-needles"), {"c.json", "`format` sala-choices"});
  expect_refused(replaced("0123456789abcdef", "x"), {"c.json", "another tokenizer"});
  expect_refused(replaced("902", "1000"), {"c.json", "item 0", "`choices`", "id 1000"});
  expect_refused(replaced("[901]", "[]"), {"c.json", "item 0", "found none"});
  expect_refused(replaced("\"answer\": 1", "\"answer\": 2"), {"c.json", "item 0", "`answer` is 2"});
  expect_refused(replaced("[2, 8]", "[2, 0]"), {"c.json", "item 0", "`choice_chars`"});
  expect_refused(replaced("[2, 8]", "[2]"), {"c.json", "item 0", "two or more"});
  expect_refused(replaced("choice_chars", "choice_bytes"),
                 {"c.json", "item 0", "earlier data/prepare"});
  expect_refused(whole.substr(0, whole.find("[{")) + "[]}", {"c.json", "no item"});
}

}  // namespace
}  // namespace sala
