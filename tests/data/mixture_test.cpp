// The stream of rows: every token once per epoch and in order within its document, shares as asked,
// nothing lost or repeated when a stage changes or a state is restored.
#include "data/mixture.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "data/shuffle.h"
#include "tests/data/test_store.h"

namespace sala {
namespace {

Source make_source(const TestFolder& folder, const std::string& name, const TestStore& store,
                   double weight = 1.0) {
  const std::string path = folder / (name + ".h5");
  if (!std::filesystem::exists(path)) write_store(path, store);
  return Source({name, {path}, weight}, {});
}

std::vector<Source> list(Source source) {
  std::vector<Source> sources;
  sources.push_back(std::move(source));
  return sources;
}

// How far each document of each source has been handed out, by source name: fails at any gap or
// repetition within an epoch, and counts how often a document was finished.
class Ledger {
 public:
  void add(const std::vector<Source>& sources, const RowPlan& plan) {
    for (const Piece& piece : plan) {
      const Source& source = sources[static_cast<size_t>(piece.source)];
      auto& [next, finished] = progress_[source.name()][piece.document];
      ASSERT_EQ(piece.offset, next) << source.name() << " document " << piece.document;
      const bool ends = piece.offset + piece.count == source.document_length(piece.document);
      ASSERT_EQ(piece.ends_document, ends);
      next = ends ? 0 : piece.offset + piece.count;
      finished += ends ? 1 : 0;
      tokens_[source.name()] += piece.count;
    }
  }
  std::int64_t tokens(const std::string& source) { return tokens_[source]; }
  std::int64_t finished(const std::string& source, std::int64_t document) {
    return progress_[source][document].second;
  }

 private:
  std::map<std::string, std::map<std::int64_t, std::pair<std::int64_t, std::int64_t>>> progress_;
  std::map<std::string, std::int64_t> tokens_;
};

std::vector<std::int64_t> epoch_order(std::uint64_t seed, const std::string& source,
                                      std::int64_t epoch, std::int64_t count) {
  const EpochOrder order(seed, source, epoch, count);
  std::vector<std::int64_t> documents;
  for (std::int64_t i = 0; i < count; ++i) documents.push_back(order.document(i));
  return documents;
}

TEST(EpochOrder, IsAPermutationThatDependsOnSeedNameAndEpoch) {
  for (const std::int64_t count : {1, 2, 3, 4, 5, 7, 16, 17, 1000, 4096, 4097}) {
    auto order = epoch_order(3, "books", 0, count);
    std::sort(order.begin(), order.end());
    std::vector<std::int64_t> expected(static_cast<size_t>(count));
    std::iota(expected.begin(), expected.end(), 0);
    EXPECT_EQ(order, expected);
  }
  const auto order = epoch_order(3, "books", 0, 1000);
  EXPECT_EQ(order, epoch_order(3, "books", 0, 1000));
  EXPECT_NE(order, epoch_order(3, "books", 1, 1000));
  EXPECT_NE(order, epoch_order(4, "books", 0, 1000));
  EXPECT_NE(order, epoch_order(3, "web", 0, 1000));
}

// Every document is as likely at every position, and neighbours go their own ways: Fisher-Yates has
// these properties, a permutation that is computed must show them.
TEST(EpochOrder, MixesLikeAShuffle) {
  constexpr int kOrders = 7000, kCount = 7;
  int seen[kCount][kCount] = {};
  std::map<std::vector<std::int64_t>, int> orders_of_four;
  for (int epoch = 0; epoch < kOrders; ++epoch) {
    const auto order = epoch_order(5, "books", epoch, kCount);
    for (int position = 0; position < kCount; ++position) ++seen[position][order[position]];
    ++orders_of_four[epoch_order(5, "web", epoch, 4)];
  }
  for (const auto& of_position : seen) {
    for (const int count : of_position) EXPECT_NEAR(count, kOrders / kCount, 150);  // 5 sigma
  }
  EXPECT_EQ(orders_of_four.size(), 24u);
  for (const auto& [order, count] : orders_of_four) EXPECT_NEAR(count, kOrders / 24, 90);

  const auto order = epoch_order(5, "books", 0, 100'000);
  double distance = 0;
  for (size_t i = 1; i < order.size(); ++i) {
    distance += static_cast<double>(std::abs(order[i] - order[i - 1]));
  }
  EXPECT_NEAR(distance / 1e5, 1e5 / 3, 600);  // of two independent places: a third of the range
}

// No table of documents, so more of them than fit in memory or in 32 bits have an order too.
TEST(EpochOrder, CountsBeyondThirtyTwoBits) {
  const std::int64_t count = (std::int64_t{1} << 40) + 12345;
  const EpochOrder order(1, "web", 0, count);
  std::set<std::int64_t> documents;
  for (std::int64_t position = count - 1000; position < count; ++position) {
    const std::int64_t document = order.document(position);
    ASSERT_GE(document, 0);
    ASSERT_LT(document, count);
    documents.insert(document);
  }
  EXPECT_EQ(documents.size(), 1000u);
  EXPECT_GT(*documents.rbegin(), std::int64_t{1} << 39);
}

TEST(Mixture, AnEpochHandsOutEveryTokenOnceAndTheNextComesInAnotherOrder) {
  const TestFolder folder;
  const auto sources = list(make_source(folder, "web", numbered_documents(101, 90, 1)));
  const std::int64_t epoch_tokens = sources[0].num_tokens();
  for (const std::int64_t lanes : {1, 3, 64, 500}) {
    Mixture mixture(sources, {1, lanes, 7, "train"}, nullptr);  // T = 1: rows end with the epoch
    std::vector<std::int64_t> orders[2];
    Ledger ledger;
    for (auto& order : orders) {
      std::set<std::pair<std::int64_t, std::int64_t>> seen;
      for (std::int64_t i = 0; i < epoch_tokens; ++i) {
        const RowPlan plan = mixture.next_row();
        ledger.add(sources, plan);
        ASSERT_TRUE(seen.insert({plan[0].document, plan[0].offset}).second);
        if (plan[0].offset == 0) order.push_back(plan[0].document);
      }
      ASSERT_EQ(static_cast<std::int64_t>(seen.size()), epoch_tokens);
    }
    EXPECT_NE(orders[0], orders[1]);
  }
}

TEST(Mixture, RowsAreFullAndOneLaneReadsItsDocumentOn) {
  const TestFolder folder;
  const auto sources = list(make_source(folder, "books", numbered_documents(20, 5000, 2)));
  Mixture mixture(sources, {257, 4, 1, "train"}, nullptr);
  std::vector<Piece> open(4, Piece{0, -1, 0, 0, true});
  for (int r = 0; r < 300; ++r) {
    const RowPlan plan = mixture.next_row();
    std::int64_t length = 0;
    for (const Piece& piece : plan) length += piece.count;
    ASSERT_EQ(length, 257);
    Piece& before = open[static_cast<size_t>(r % 4)];
    // Unless another lane took the tail over at the end of an epoch, the lane goes on with it.
    if (!before.ends_document && r < 60) {
      EXPECT_EQ(plan[0].document, before.document);
      EXPECT_EQ(plan[0].offset, before.offset + before.count);
    }
    before = plan.back();
  }
}

TEST(Mixture, SharesOfTokensFollowTheWeights) {
  const TestFolder folder;
  std::vector<Source> sources;
  sources.push_back(make_source(folder, "books", numbered_documents(40, 20000, 3), 5));
  sources.push_back(make_source(folder, "web", numbered_documents(3000, 300, 4), 3));
  sources.push_back(make_source(folder, "code", numbered_documents(900, 1000, 5), 2));
  Mixture mixture(sources, {512, 64, 9, "train"}, nullptr);
  Ledger ledger;
  for (int r = 0; r < 1500; ++r) ledger.add(sources, mixture.next_row());
  const double total = 1500.0 * 512;
  EXPECT_NEAR(static_cast<double>(ledger.tokens("books")) / total, 0.5, 0.01);
  EXPECT_NEAR(static_cast<double>(ledger.tokens("web")) / total, 0.3, 0.01);
  EXPECT_NEAR(static_cast<double>(ledger.tokens("code")) / total, 0.2, 0.01);
}

// Of two sources, one with documents longer than a row: none of the other's is cut.
TEST(Mixture, WhatFitsIntoARowIsNotCut) {
  const TestFolder folder;
  std::vector<Source> sources;
  sources.push_back(make_source(folder, "books", numbered_documents(40, 20000, 3), 3));
  sources.push_back(make_source(folder, "recall", numbered_documents(3000, 512, 4), 1));
  Mixture mixture(sources, {512, 16, 9, "train"}, nullptr);
  Ledger ledger;
  std::int64_t whole = 0;
  for (int r = 0; r < 1500; ++r) {
    const RowPlan plan = mixture.next_row();
    ledger.add(sources, plan);
    for (const Piece& piece : plan) {
      if (piece.source == 0) continue;
      ASSERT_EQ(piece.count, sources[1].document_length(piece.document));
      ++whole;
    }
  }
  EXPECT_GT(whole, 300);
  EXPECT_NEAR(static_cast<double>(ledger.tokens("recall")) / (1500 * 512), 0.25, 0.01);
}

// Where all documents are short, little of a row's end is filled by the beginning of one.
TEST(Mixture, LittleIsCutOffWhereAllDocumentsAreShort) {
  const TestFolder folder;
  const auto sources = list(make_source(folder, "chat", numbered_documents(3000, 500, 4)));
  Mixture mixture(sources, {512, 16, 9, "sft"}, nullptr);
  Ledger ledger;
  std::int64_t before_cuts = 0;
  for (int r = 0; r < 1000; ++r) {
    const RowPlan plan = mixture.next_row();
    ledger.add(sources, plan);
    for (const Piece& piece : plan) {
      if (!piece.ends_document) before_cuts += piece.count;
    }
  }
  EXPECT_LT(before_cuts, 1000 * 512 / 50);
}

TEST(Mixture, ABatchMixesManyBooks) {
  const TestFolder folder;
  const auto sources = list(make_source(folder, "books", numbered_documents(200, 30000, 6)));
  Mixture mixture(sources, {512, 64, 2, "train"}, nullptr);
  for (int batch = 0; batch < 8; ++batch) {
    std::set<std::int64_t> documents;
    for (int r = 0; r < 64; ++r) {
      for (const Piece& piece : mixture.next_row()) documents.insert(piece.document);
    }
    EXPECT_GE(documents.size(), 60u);
  }
}

TEST(Mixture, AStateRestoredAtAnyRowGoesOnEqually) {
  const TestFolder folder;
  std::vector<Source> sources;
  sources.push_back(make_source(folder, "books", numbered_documents(5, 900, 7), 1));
  sources.push_back(make_source(folder, "web", numbered_documents(60, 50, 8), 2));
  const MixtureConfig config{67, 7, 5, "train"};
  Mixture whole(sources, config, nullptr);
  std::vector<nlohmann::json> states = {whole.state()};
  for (int r = 0; r < 150; ++r) {
    whole.next_row();
    states.push_back(whole.state());
  }
  for (size_t r = 0; r + 1 < states.size(); ++r) {
    const auto text = states[r].dump();  // through text, as a checkpoint does
    Mixture resumed(sources, config, nlohmann::json::parse(text));
    ASSERT_EQ(resumed.rows_done(), static_cast<std::int64_t>(r));
    resumed.next_row();
    ASSERT_EQ(resumed.state(), states[r + 1]);
  }
}

// Three stages with other lengths, lanes, weights and sources: read on document by document, the
// pieces of all stages join without gap or repetition, also for a source that was away.
TEST(Mixture, StagesCarryCursorsAndOpenDocuments) {
  const TestFolder folder;
  const TestStore books = numbered_documents(12, 3000, 10);
  const TestStore web = numbered_documents(300, 120, 11);
  const TestStore code = numbered_documents(50, 700, 12);
  Ledger ledger;
  nlohmann::json state;
  const auto run = [&](const std::vector<Source>& sources, const MixtureConfig& config, int rows) {
    Mixture mixture(sources, config, state);
    EXPECT_EQ(mixture.rows_done(), 0);
    for (int r = 0; r < rows; ++r) ledger.add(sources, mixture.next_row());
    state = nlohmann::json::parse(mixture.state().dump());
  };
  for (int round = 0; round < 3; ++round) {
    const std::string name = std::to_string(round);
    std::vector<Source> both;
    both.push_back(make_source(folder, "books", books, 3));
    both.push_back(make_source(folder, "web", web, 1));
    run(both, {128, 16, 1, "short" + name}, 70);
    run(list(make_source(folder, "code", code)), {100, 5, 1, "code" + name}, 33);
    std::vector<Source> turned;
    turned.push_back(make_source(folder, "web", web, 1));
    turned.push_back(make_source(folder, "books", books, 1));
    run(turned, {1000, 3, 1, "long" + name}, 9);
  }
  // An epoch ends before the next begins: no document is ahead of another by more than one reading.
  for (const auto& [name, count] : {std::pair{"books", 12}, {"web", 300}, {"code", 50}}) {
    std::int64_t least = ledger.finished(name, 0), most = least;
    for (int d = 1; d < count; ++d) {
      least = std::min(least, ledger.finished(name, d));
      most = std::max(most, ledger.finished(name, d));
    }
    EXPECT_LE(most - least, 1) << name;
  }
}

TEST(Mixture, ANewStageForgetsOldDeficits) {
  const TestFolder folder;
  const TestStore a = numbered_documents(400, 60, 20), b = numbered_documents(400, 60, 21);
  std::vector<Source> first;
  first.push_back(make_source(folder, "a", a, 99));
  first.push_back(make_source(folder, "b", b, 1));
  Mixture before(first, {64, 8, 1, "one"}, nullptr);
  for (int r = 0; r < 300; ++r) before.next_row();
  std::vector<Source> second;
  second.push_back(make_source(folder, "a", a, 1));
  second.push_back(make_source(folder, "b", b, 1));
  Mixture after(second, {64, 8, 1, "two"}, before.state());
  std::int64_t tokens[2] = {0, 0};
  for (int r = 0; r < 100; ++r) {
    for (const Piece& piece : after.next_row()) tokens[piece.source] += piece.count;
  }
  EXPECT_NEAR(static_cast<double>(tokens[0]) / 6400, 0.5, 0.02);
}

TEST(Mixture, AStateThatDoesNotFitIsRefused) {
  const TestFolder folder;
  const auto sources = list(make_source(folder, "web", numbered_documents(30, 90, 1)));
  Mixture mixture(sources, {64, 4, 7, "train"}, nullptr);
  mixture.next_row();
  const nlohmann::json state = mixture.state();
  const auto resume = [&](const std::vector<Source>& with, std::uint64_t seed,
                          const nlohmann::json& from) {
    return [&, seed] { Mixture resumed(with, {64, 4, seed, "train"}, from); };
  };
  expect_error(resume(sources, 8, state), {"seed 7", "8"});
  nlohmann::json broken = state;
  broken["sources"]["web"].erase("epoch");
  expect_error(resume(sources, 7, broken), {"damaged", "epoch"});
  broken = state;
  broken["lanes"][0][3] = 100000;
  expect_error(resume(sources, 7, broken), {"`web`", "token 100000"});
  broken = state;
  broken["sources"]["web"]["position"] = 31;
  expect_error(resume(sources, 7, broken), {"`web`", "cursor"});
  broken = state;
  broken["order"] = "some other";
  expect_error(resume(sources, 7, broken), {"another order"});
  broken.erase("order");
  expect_error(resume(sources, 7, broken), {"another order"});
  const TestFolder other;
  const auto changed = list(make_source(other, "web", numbered_documents(30, 90, 2)));
  expect_error(resume(changed, 7, state), {"`web`", "web.h5", "not those"});
  const auto stranger = list(make_source(other, "code", numbered_documents(30, 90, 2)));
  expect_error(resume(stranger, 7, state), {"`web`", "missing", "`train`"});
  expect_error([&] { Mixture none({}, {64, 4, 7, "train"}, nullptr); }, {"no source"});
  std::vector<Source> twice = list(make_source(folder, "web", {}));
  twice.push_back(make_source(folder, "web", {}));
  expect_error(resume(twice, 7, nullptr), {"`web`", "twice"});
}

}  // namespace
}  // namespace sala
