// Held-out windows: fixed, disjoint, spread over the documents; short documents whole.
#include "data/eval_rows.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/data/test_store.h"

namespace sala {
namespace {

Source source_of_lengths(const TestFolder& folder, const std::vector<std::int64_t>& lengths) {
  TestStore store;
  for (const std::int64_t length : lengths) {
    store.documents.emplace_back(static_cast<size_t>(length), 3);
    store.documents.back().back() = 0;
  }
  const std::string path = folder / (std::to_string(lengths.size()) + ".h5");
  write_store(path, store);
  return Source({"held-out", {path}, 1.0}, {});
}

TEST(EvalRows, OneWindowPerDocumentSpreadEvenly) {
  const TestFolder folder;
  const Source source = source_of_lengths(folder, std::vector<std::int64_t>(40, 1000));
  const auto rows = plan_eval_rows(source, 100, 8, 1);
  ASSERT_EQ(rows.size(), 8u);
  std::int64_t before = -1;
  for (const RowPlan& row : rows) {
    ASSERT_EQ(row.size(), 1u);
    EXPECT_EQ(row[0].count, 100);
    if (before >= 0) {
      EXPECT_EQ(row[0].document - before, 5);
    }
    before = row[0].document;
  }
  const auto same = plan_eval_rows(source, 100, 8, 1);
  for (size_t r = 0; r < rows.size(); ++r) EXPECT_EQ(rows[r][0].offset, same[r][0].offset);
}

TEST(EvalRows, FurtherWindowsAreDisjointAndShortDocumentsComeWhole) {
  const TestFolder folder;
  const std::vector<std::int64_t> lengths = {730, 30, 100, 1, 50, 99, 215, 20};
  const Source source = source_of_lengths(folder, lengths);
  const auto rows = plan_eval_rows(source, 100, 100, 5);
  std::set<std::pair<std::int64_t, std::int64_t>> tokens;
  size_t windows = 0, short_documents = 0;
  for (const RowPlan& row : rows) {
    std::int64_t length = 0;
    for (const Piece& piece : row) {
      length += piece.count;
      for (std::int64_t i = 0; i < piece.count; ++i) {
        ASSERT_TRUE(tokens.insert({piece.document, piece.offset + i}).second);
      }
      const std::int64_t whole = lengths[static_cast<size_t>(piece.document)];
      ASSERT_LE(piece.offset + piece.count, whole);
      EXPECT_EQ(piece.ends_document, piece.offset + piece.count == whole);
      if (whole < 100) {
        EXPECT_EQ(piece.count, whole);
        ++short_documents;
      } else {
        ++windows;
      }
    }
    EXPECT_LE(length, 100);
  }
  EXPECT_EQ(windows, 7u + 1u + 2u);
  EXPECT_EQ(short_documents, 5u);
}

TEST(EvalRows, TheSeedMovesWindowsWithinTheirDocuments) {
  const TestFolder folder;
  const Source source = source_of_lengths(folder, {150});  // one window, 51 places for it
  std::set<std::int64_t> offsets;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    offsets.insert(plan_eval_rows(source, 100, 1, seed)[0][0].offset);
  }
  EXPECT_GT(offsets.size(), 10u);
}

TEST(EvalRows, ReadsTargetsPastTheWindow) {
  const TestFolder folder;
  TestStore store = numbered_documents(6, 500, 3);
  write_store(folder / "x.h5", store);
  const auto rows = eval_rows({folder / "x.h5"}, {}, 37, 9, 2);
  const Source source({"held-out", {folder / "x.h5"}, 1.0}, {});
  const auto plans = plan_eval_rows(source, 37, 9, 2);
  ASSERT_EQ(rows.size(), 9u);
  for (size_t r = 0; r < rows.size(); ++r) {
    const Piece& piece = plans[r][0];
    const auto& document = store.documents[static_cast<size_t>(piece.document)];
    ASSERT_EQ(rows[r].ids.size(), 37u);
    EXPECT_EQ(rows[r].position[36], 36);
    const auto end = static_cast<size_t>(piece.offset + piece.count);
    EXPECT_EQ(rows[r].targets[36], piece.ends_document ? 0 : document[end]);
    EXPECT_EQ(rows[r].loss_weight[36], piece.ends_document ? 0.0f : 1.0f);
  }
  expect_error([&] { plan_eval_rows(source, 0, 9, 2); }, {"length"});
}

}  // namespace
}  // namespace sala
