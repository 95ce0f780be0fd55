// The loader: rows hold the right tokens, targets and weights; the stream is one for any number of
// ranks; resuming at any step equals not stopping; errors reach the caller.
#include "data/loader.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "tests/data/test_store.h"

namespace sala {
namespace {

bool same(const Row& a, const Row& b) {
  return a.ids == b.ids && a.targets == b.targets && a.loss_weight == b.loss_weight &&
         a.position == b.position && a.doc_starts == b.doc_starts &&
         a.source_of_doc == b.source_of_doc;
}

// Two sources, one with a loss mask, in several files.
class LoaderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    books_ = numbered_documents(9, 700, 1);
    write_store(folder_ / "books.h5", books_);
    for (int i = 0; i < 3; ++i) {
      web_[i] = numbered_documents(40 + i, 60, 2 + i);
      for (size_t d = 0; d < web_[i].documents.size(); ++d) {
        std::vector<std::uint8_t> mask;
        for (size_t t = 0; t < web_[i].documents[d].size(); ++t) mask.push_back((t + d) % 3 != 0);
        web_[i].masks.push_back(mask);
      }
      write_store(folder_ / ("web-" + std::to_string(i) + ".h5"), web_[i]);
    }
    specs_ = {{"books", {folder_ / "books.h5"}, 2.0},
              {"web", expand_globs({folder_ / "web-*.h5"}), 1.0}};
  }

  static LoaderConfig config(int rank = 0, int num_ranks = 1, std::int64_t rows_per_step = 5) {
    LoaderConfig config;
    config.row_length = 61;
    config.rows_per_step = rows_per_step;
    config.seed = 11;
    config.lanes = 6;
    config.stage = "train";
    config.rank = rank;
    config.num_ranks = num_ranks;
    return config;
  }

  // The document and mask that a piece comes from.
  std::pair<std::vector<std::int32_t>, std::vector<std::uint8_t>> origin(const Piece& piece) const {
    if (piece.source == 0) {
      const auto& document = books_.documents[piece.document];
      return {document, std::vector<std::uint8_t>(document.size(), 1)};
    }
    auto index = static_cast<size_t>(piece.document);
    int store = 0;
    while (index >= web_[store].documents.size()) index -= web_[store++].documents.size();
    return {web_[store].documents[index], web_[store].masks[index]};
  }

  TestFolder folder_;
  TestStore books_, web_[3];
  std::vector<SourceSpec> specs_;
};

// Every field of every row against the documents themselves: isolation (positions and targets never
// cross a document), the target at a cut, masks, and the global count of targets.
TEST_F(LoaderTest, RowsSayExactlyWhatTheDocumentsSay) {
  Loader loader(specs_, config());
  for (int s = 0; s < 40; ++s) {
    const StepRows step = loader.next();
    ASSERT_EQ(step.step, s);
    ASSERT_EQ(step.first_row_of_stage, 5 * s);
    ASSERT_EQ(step.rows.size(), 5u);
    double weights = 0;
    for (size_t r = 0; r < step.rows.size(); ++r) {
      const Row& row = step.rows[r];
      ASSERT_EQ(row.ids.size(), 61u);
      ASSERT_EQ(row.doc_starts.size(), step.plans[r].size());
      size_t t = 0;
      for (size_t d = 0; d < step.plans[r].size(); ++d) {
        const Piece& piece = step.plans[r][d];
        const auto [document, mask] = origin(piece);
        ASSERT_EQ(row.doc_starts[d], static_cast<std::int64_t>(t));
        ASSERT_EQ(row.source_of_doc[d], piece.source);
        for (std::int64_t i = 0; i < piece.count; ++i, ++t) {
          const auto at = static_cast<size_t>(piece.offset + i);
          const bool last = at + 1 == document.size();
          ASSERT_EQ(row.ids[t], document[at]);
          ASSERT_EQ(row.position[t], i);
          ASSERT_EQ(row.targets[t], last ? 0 : document[at + 1]);
          ASSERT_EQ(row.loss_weight[t], last ? 0.0f : static_cast<float>(mask[at + 1]));
          weights += row.loss_weight[t];
        }
      }
      ASSERT_EQ(t, 61u);
    }
    EXPECT_EQ(static_cast<double>(step.num_target_tokens), weights);
  }
}

TEST_F(LoaderTest, TheStreamIsOneForAnyNumberOfRanks) {
  for (const std::int64_t rows : {1, 5, 8}) {
    Loader whole(specs_, config(0, 1, rows));
    std::vector<StepRows> expected;
    for (int s = 0; s < 12; ++s) expected.push_back(whole.next());
    for (const int num_ranks : {2, 3, 4, 7}) {
      std::vector<std::unique_ptr<Loader>> loaders;
      for (int rank = 0; rank < num_ranks; ++rank) {
        loaders.push_back(std::make_unique<Loader>(specs_, config(rank, num_ranks, rows)));
      }
      for (const StepRows& one : expected) {
        std::vector<Row> joined;
        for (const auto& loader : loaders) {
          const StepRows part = loader->next();
          ASSERT_EQ(part.num_target_tokens, one.num_target_tokens);
          ASSERT_EQ(part.state_after, one.state_after);
          ASSERT_EQ(part.first_row, static_cast<std::int64_t>(joined.size()));
          joined.insert(joined.end(), part.rows.begin(), part.rows.end());
        }
        ASSERT_EQ(joined.size(), one.rows.size());
        for (size_t r = 0; r < joined.size(); ++r) ASSERT_TRUE(same(joined[r], one.rows[r]));
      }
    }
  }
}

TEST_F(LoaderTest, ResumingAtEveryStepEqualsNotStopping) {
  Loader whole(specs_, config());
  std::vector<nlohmann::json> states = {whole.state()};
  std::vector<StepRows> steps;
  for (int s = 0; s < 25; ++s) {
    steps.push_back(whole.next());
    states.push_back(steps.back().state_after);
    EXPECT_EQ(whole.state(), steps.back().state_after);
  }
  for (size_t s = 0; s < steps.size(); ++s) {
    Loader resumed(specs_, config(0, 1), nlohmann::json::parse(states[s].dump()));
    for (size_t i = s; i < std::min(s + 2, steps.size()); ++i) {
      const StepRows step = resumed.next();
      ASSERT_EQ(step.step, static_cast<std::int64_t>(i));
      ASSERT_EQ(step.state_after, steps[i].state_after);
      for (size_t r = 0; r < step.rows.size(); ++r) {
        ASSERT_TRUE(same(step.rows[r], steps[i].rows[r]));
      }
    }
  }
}

// A loader that was resumed must save as good a state as one that was not, also where an epoch ends
// with the step: one token a step hits every end.
TEST_F(LoaderTest, ResumedAgainAfterEveryStepEqualsNotStopping) {
  write_store(folder_ / "tiny.h5", numbered_documents(4, 6, 8));
  const std::vector<SourceSpec> tiny = {{"tiny", {folder_ / "tiny.h5"}, 1.0}};
  LoaderConfig one = config(0, 1, 1);
  one.row_length = 1;
  one.lanes = 2;
  Loader whole(tiny, one);
  nlohmann::json state;
  for (int s = 0; s < 60; ++s) {
    const StepRows expected = whole.next();
    Loader resumed(tiny, one, state);
    const StepRows step = resumed.next();
    ASSERT_TRUE(same(step.rows[0], expected.rows[0])) << s;
    ASSERT_EQ(step.state_after, expected.state_after) << s;
    state = nlohmann::json::parse(resumed.state().dump());
  }
  EXPECT_GT(state.at("sources").at("tiny").at("epoch"), 2);
}

// Steps are counted on, though they were of another size; rows are counted as they were read.
TEST_F(LoaderTest, RowsOfTheStageAreCountedThroughStepsOfAnotherSize) {
  Loader first(specs_, config(0, 1, 5));
  for (int s = 0; s < 3; ++s) first.next();
  Loader smaller(specs_, config(0, 1, 2), first.state());
  for (const std::int64_t row : {15, 17}) {
    Loader single(specs_, config(0, 1, 1));
    for (std::int64_t r = 0; r < row; ++r) single.next();
    const StepRows step = smaller.next(), expected = single.next();
    EXPECT_EQ(step.first_row_of_stage, row);
    EXPECT_EQ(expected.first_row_of_stage, row);
    EXPECT_TRUE(same(step.rows[0], expected.rows[0]));
  }
}

TEST_F(LoaderTest, AnotherStageStartsAtStepZeroAndReadsOn) {
  Loader first(specs_, config());
  for (int s = 0; s < 3; ++s) first.next();
  LoaderConfig longer = config();
  longer.stage = "long";
  longer.row_length = 200;
  Loader second(specs_, longer, first.state());
  const StepRows step = second.next();
  EXPECT_EQ(step.step, 0);
  EXPECT_EQ(step.first_row_of_stage, 0);
  // Lane 0 holds an open document, or took none; what opens the row is never a document's repeat.
  const auto lanes = first.state().at("lanes");
  ASSERT_FALSE(lanes.empty());
  if (lanes[0][0] == 0) {
    EXPECT_EQ(step.plans[0][0].document, lanes[0][2].get<std::int64_t>());
    EXPECT_EQ(step.plans[0][0].offset, lanes[0][3].get<std::int64_t>());
  }
}

TEST(RowsOfRank, CoverAllRowsInOrder) {
  for (const std::int64_t rows : {1, 2, 5, 64}) {
    for (const int ranks : {1, 2, 3, 4, 100}) {
      std::int64_t next = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        const auto [first, last] = rows_of_rank(rows, rank, ranks);
        ASSERT_EQ(first, next);
        for (std::int64_t i = first; i < last; ++i) ASSERT_EQ(i * ranks / rows, rank);
        next = last;
      }
      ASSERT_EQ(next, rows);
    }
  }
}

// The reading thread runs ahead of us, but the error comes at the step it belongs to, and stays.
TEST_F(LoaderTest, AnIdOutsideTheVocabularyStopsTheStepThatReadsIt) {
  TestStore bad = numbered_documents(1, 2, 1);
  bad.documents = {std::vector<std::int32_t>(1000, 5)};
  bad.documents[0][700] = 999;
  bad.documents[0].back() = 0;
  bad.vocab_size = 999;
  write_store(folder_ / "bad.h5", bad);
  LoaderConfig one = config(0, 1, 1);
  one.row_length = 100;
  Loader loader({{"bad", {folder_ / "bad.h5"}, 1.0}}, one);
  for (int s = 0; s < 6; ++s) EXPECT_NO_THROW(loader.next());
  // Step 6 reads tokens 600 .. 700, the last one as the target at the cut.
  for (int again = 0; again < 2; ++again) {
    expect_error([&] { loader.next(); }, {"bad.h5", "offset 700", "id 999", "999"});
  }
}

TEST_F(LoaderTest, StoppingInTheMiddleIsClean) {
  for (int taken = 0; taken < 4; ++taken) {
    Loader loader(specs_, config());
    for (int s = 0; s < taken; ++s) loader.next();
  }
}

TEST_F(LoaderTest, BadRequestsAreRefusedBeforeAnythingIsRead) {
  LoaderConfig wrong = config();
  wrong.tokenizer = {"ffffffffffffffff", 0};
  expect_error([&] { Loader loader(specs_, wrong); }, {"books.h5", "another tokenizer"});
  wrong = config();
  wrong.rows_per_step = 0;
  expect_error([&] { Loader loader(specs_, wrong); }, {"rows"});
  wrong = config();
  wrong.row_length = 0;
  expect_error([&] { Loader loader(specs_, wrong); }, {"row length"});
  wrong = config(2, 2);
  expect_error([&] { Loader loader(specs_, wrong); }, {"rank 2 of 2"});
  expect_error(
      [&] {
        Loader loader({{"x", {folder_ / "none.h5"}, 1.0}}, config());
      },
      {"none.h5", "no such file"});
  nlohmann::json state = Loader(specs_, config()).state();
  state.erase("step");
  expect_error([&] { Loader loader(specs_, config(), state); }, {"damaged", "step"});
  expect_error([&] { Loader loader(specs_, config(), nlohmann::json::array({1})); }, {"damaged"});
}

}  // namespace
}  // namespace sala
