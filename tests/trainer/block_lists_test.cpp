// Block lists of a hybrid as a file: what neighbours have in common, counted by hand; the file
// comes back equal or is refused by name; a pass through a model keeps what block_select gives.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "data/files/hdf5_file.h"
#include "model/forward.h"
#include "tests/data/test_store.h"
#include "tests/trainer/drawn_lists.h"
#include "tests/trainer/model_folders.h"
#include "trainer/folder/inspect.h"
#include "trainer/lists/collect.h"
#include "trainer/lists/unions.h"

namespace sala::test {
namespace {

// Blocks of one token, so that token t's own block is t: four blocks are listed, the first, the
// token's own and the one before it by force.
SparseConfig small_config() {
  SparseConfig c;
  c.block_size = 1;
  c.window_size = 1;
  c.init_blocks = 1;
  c.topk = 3;
  c.dense_len = 0;
  return c;
}

at::Tensor lists_of(const std::vector<std::vector<int>>& tokens) {
  std::vector<at::Tensor> rows;
  for (const auto& list : tokens) rows.push_back(at::tensor(list, at::kInt));
  return at::stack(rows).unsqueeze(0);
}

TEST(BlockLists, UnionsCountWhatAnyOfNeighboursLists) {
  const SparseConfig c = small_config();
  ASSERT_EQ(first_choice(c), 4);
  // Tokens 4 to 12; only tiles whose first token is 4 or later, and that are whole, count.
  const at::Tensor blocks = lists_of({{0, 1, 3, 4},
                                      {0, 1, 4, 5},
                                      {0, 1, 5, 6},
                                      {0, 1, 6, 7},  // tokens 4 to 7 list 0, 1, 3, 4, 5, 6, 7
                                      {0, 1, 7, 8},
                                      {0, 2, 8, 9},
                                      {0, 3, 9, 10},
                                      {0, 4, 10, 11},  // 8 to 11: 0, 1, 2, 3, 4, 7, 8, 9, 10, 11
                                      {0, 1, 11, 12}});
  EXPECT_DOUBLE_EQ(union_factor(blocks, 4, 4, c), (7 / 4.0 + 10 / 4.0) / 2);
  EXPECT_DOUBLE_EQ(union_factor(blocks, 4, 1, c), 1);
  EXPECT_DOUBLE_EQ(union_factor(blocks, 4, 2, c), (5 + 5 + 6 + 6) / 4.0 / 4);
  EXPECT_TRUE(std::isnan(union_factor(blocks, 4, 16, c)));
  // Forced: block 0, the token's own and the one before it: of token 4 its 3 and 4, ...
  const ListFacts facts = list_facts(blocks, 4, c);
  EXPECT_DOUBLE_EQ(facts.unions[0], union_factor(blocks, 4, 4, c));
  EXPECT_DOUBLE_EQ(facts.forced, 27 / 36.0);
  EXPECT_NE(list_facts_line("a", facts).find("2.12"), std::string::npos);
}

TEST(BlockLists, TokensThatListAllTheySeeDoNotCount) {
  const SparseConfig c = small_config();
  const at::Tensor all = lists_of({{0, -1, -1, -1}, {0, 1, -1, -1}, {0, 1, 2, -1}, {0, 1, 2, 3}});
  EXPECT_TRUE(std::isnan(union_factor(all, 0, 2, c)));
  EXPECT_TRUE(std::isnan(list_facts(all, 0, c).forced));
  EXPECT_NE(list_facts_line("a", list_facts(all, 0, c)).find(" -"), std::string::npos);
}

TEST(BlockLists, EachKvHeadHasItsOwnTiles) {
  const SparseConfig c = small_config();
  const at::Tensor same = lists_of({{0, 1, 3, 4}, {0, 1, 4, 5}});
  const at::Tensor other = lists_of({{0, 2, 3, 4}, {0, 1, 4, 5}});
  EXPECT_DOUBLE_EQ(union_factor(at::cat({same, other}), 4, 2, c), (5 / 4.0 + 6 / 4.0) / 2);
}

void expect_equal(const BlockLists& a, const BlockLists& b) {
  EXPECT_EQ(a.first_token, b.first_token);
  EXPECT_EQ(a.num_heads, b.num_heads);
  EXPECT_EQ(a.head_size, b.head_size);
  EXPECT_EQ(a.config.topk, b.config.topk);
  EXPECT_EQ(a.config.window_size, b.config.window_size);
  EXPECT_EQ(a.config.block_size, b.config.block_size);
  ASSERT_EQ(a.layers.size(), b.layers.size());
  for (size_t i = 0; i < a.layers.size(); ++i) {
    EXPECT_EQ(a.layers[i].layer, b.layers[i].layer);
    EXPECT_TRUE(at::equal(a.layers[i].blocks, b.layers[i].blocks));
  }
}

// What sala-bench times beside lists that are made: layer 20 of SmolLM2-135M's hybrid, the last
// 2,048 of 32K tokens of a book.
TEST(BlockLists, TheStoredOnesAreThoseOfATrainedHybrid) {
  const BlockLists lists =
      read_block_lists(std::string(SALA_SOURCE_DIR) + "/trainer/bench/trained_lists.h5");
  ASSERT_EQ(lists.layers.size(), 1u);
  EXPECT_EQ(lists.layers[0].layer, 20);
  EXPECT_EQ(lists.first_token + lists.num_tokens(), 32768);
  EXPECT_EQ(lists.num_tokens(), 2048);
  EXPECT_EQ(lists.num_heads / lists.num_kv_heads(), 3);
  const ListFacts facts = list_facts(lists.layers[0].blocks, lists.first_token, lists.config);
  EXPECT_NEAR(facts.unions[0], 1.66, 0.01);
  EXPECT_NEAR(facts.unions[2], 2.74, 0.01);
}

class BlockListsFile : public ModelFolders {
 protected:
  const std::string file_ = path("lists.h5");
  void expect_refused(const std::vector<std::string>& parts) {
    const std::string error = error_of([&] { read_block_lists(file_); });
    EXPECT_EQ(error.rfind(file_ + ": ", 0), 0u) << error;
    for (const std::string& part : parts) {
      EXPECT_NE(error.find(part), std::string::npos) << "`" << part << "` not in: " << error;
    }
  }
};

TEST_F(BlockListsFile, ComesBackEqual) {
  const BlockLists lists = drawn();
  write_block_lists(file_, lists);
  expect_equal(read_block_lists(file_), lists);
  const BlockLists last = last_tokens(lists, 7);
  EXPECT_EQ(last.first_token, 35 + 94);
  EXPECT_TRUE(at::equal(last.layers[1].blocks, lists.layers[1].blocks.narrow(1, 94, 7)));
  write_block_lists(file_, last);
  expect_equal(read_block_lists(file_), last);
  expect_equal(last_tokens(lists, 1000), lists);
}

TEST_F(BlockListsFile, ListsThatNobodyCouldChooseAreRefused) {
  const auto refused = [&](const std::function<void(BlockLists&)>& spoil, const char* what) {
    BlockLists lists = drawn();
    spoil(lists);
    write_block_lists(file_, lists);
    expect_refused({what});
  };
  const auto set = [](int64_t t, int64_t i, int value) {
    return [=](BlockLists& lists) { lists.layers[1].blocks[1][t][i] = value; };
  };
  refused(set(100, 3, 9),
          "dataset `layer_10`, KV head 1, token 135: expected 4 ascending blocks of 0 to 8");
  refused(set(100, 3, -1), "token 135: expected 4 ascending blocks");
  refused(set(100, 0, 8), "token 135: expected 4 ascending blocks");
  refused(set(0, 3, 2), "token 35: expected 3 ascending blocks of 0 to 2, then -1");
  refused([](BlockLists& lists) { lists.config.topk = 5; }, "x 6 blocks");
  refused([](BlockLists& lists) { lists.num_heads = 5; }, "5 query heads cannot share");
  refused([](BlockLists& lists) { lists.config.kernel_size = 0; },
          "`kernel_size` is 0, expected 1");
  refused([](BlockLists& lists) { lists.first_token = -16; }, "`first_token` is -16");
  refused(
      [](BlockLists& lists) { lists.layers[1].blocks = lists.layers[1].blocks.narrow(1, 0, 9); },
      "`layer_10` has other sizes than `layer_2`");
  BlockLists long_row = drawn();
  long_row.first_token = 40000 * 16;
  EXPECT_NE(error_of([&] { write_block_lists(file_, long_row); }).find("at most 524272 tokens"),
            std::string::npos);
}

TEST_F(BlockListsFile, OtherFilesAreRefused) {
  expect_refused({});
  std::ofstream(file_) << "no HDF5";
  expect_refused({});
  Hdf5File other = Hdf5File::create(file_);
  other.write_all("layer_0", std::vector<float>{1});
  other.commit();
  expect_refused({"expected block lists", "found another HDF5 file"});
}

// Cut anywhere, or a byte changed anywhere: equal lists or an error that names the file.
TEST_F(BlockListsFile, DamageIsSeen) {
  const BlockLists lists = drawn();
  write_block_lists(file_, lists);
  const std::string right = read_text_file(file_);
  int refused = 0;
  const auto read_spoilt = [&](const std::string& bytes) {
    std::ofstream(file_, std::ios::binary) << bytes;
    try {
      const BlockLists read = read_block_lists(file_);
      EXPECT_TRUE(at::equal(read.layers[0].blocks, lists.layers[0].blocks));
      EXPECT_TRUE(at::equal(read.layers[1].blocks, lists.layers[1].blocks));
    } catch (const std::runtime_error& error) {
      EXPECT_EQ(std::string(error.what()).rfind(file_, 0), 0u) << error.what();
      ++refused;
    }
  };
  for (size_t i = 1; i < 16; ++i) read_spoilt(right.substr(0, right.size() * i / 16));
  EXPECT_EQ(refused, 15);
  for (size_t at = 0; at < right.size(); at += 37) {
    std::string bytes = right;
    bytes[at] = static_cast<char>(bytes[at] ^ 0x41);
    read_spoilt(bytes);
  }
  EXPECT_GT(refused, 25);
}

// q and k of a sparse layer, as its own forward keeps them.
at::Tensor selected(const Model& model, HeldWeights& weights, const Batch& batch, int64_t layer) {
  const at::NoGradGuard no_grad;
  const ModelConfig& c = model.config();
  const Env env = model.env(batch, true);
  const auto unit = static_cast<size_t>(layer) + 1;
  const at::Tensor x = run_units(model, weights, 0, unit, {}, env);
  Saved saved;
  model.units()[unit]->forward(weights.lease(model.units()[unit]->parts), x, env, &saved);
  return block_select(saved.get("q"), saved.get("k"), batch.docs, batch.docs, c.sparse,
                      1 / std::sqrt(double(c.head_size)));
}

class Collected : public ModelFolders {
 protected:
  const std::string file_ = path("lists.h5");
};

TEST_F(Collected, AreWhatBlockSelectGives) {
  for (const char* golden : {"hybrid/group2", "hybrid/group3"}) {
    SCOPED_TRACE(golden);
    InspectOptions options;
    options.folder = kGolden + "/" + golden;
    options.ids_file = options.folder + "/ids.json";
    options.lists_file = file_;
    inspect(options);
    const BlockLists lists = read_block_lists(file_);
    const Model model(read_model_config(options.folder));
    HeldWeights weights(model.layouts(), at::kFloat, at::kCPU);
    read_weights(options.folder, weights.parts());
    const auto rows = nlohmann::json::parse(read_text_file(options.ids_file))
                          .get<std::vector<std::vector<int64_t>>>();
    const Batch batch = single_document(rows[0], 0, at::kCPU);
    ASSERT_EQ(lists.layers.size(), 2u);
    EXPECT_EQ(lists.num_heads, model.config().num_heads);
    EXPECT_GT(lists.num_tokens(), first_choice(lists.config)) << "nothing was chosen";
    for (const auto& [layer, blocks] : lists.layers) {
      EXPECT_TRUE(at::equal(blocks, selected(model, weights, batch, layer))) << layer;
    }
  }
}

TEST_F(Collected, OfOneLayerAndTheLastTokensOfAStoresDocument) {
  TestStore store;
  store.vocab_size = 211;
  for (const int length : {20, 150, 300}) {
    std::vector<int32_t> ids;
    for (int t = 0; t + 1 < length; ++t) ids.push_back(3 + (t * t + length) % 200);
    ids.push_back(static_cast<int32_t>(store.eos_id));
    store.documents.push_back(ids);
  }
  write_store(path("store.h5"), store);
  InspectOptions options;
  options.folder = kGolden + "/hybrid/group3";
  options.store_file = path("store.h5");
  options.tokens = 140;
  options.lists_file = file_;
  inspect(options);
  const BlockLists whole = read_block_lists(file_);
  EXPECT_EQ(whole.num_tokens(), 140);
  options.layer = 3;
  options.last = 30;
  inspect(options);
  const BlockLists last = read_block_lists(file_);
  ASSERT_EQ(last.layers.size(), 1u);
  EXPECT_EQ(last.layers[0].layer, 3);
  EXPECT_EQ(last.first_token, 110);
  EXPECT_TRUE(at::equal(last.layers[0].blocks, whole.layers[1].blocks.narrow(1, 110, 30)));

  options.tokens = 301;
  EXPECT_NE(error_of([&] {
              inspect(options);
            }).find("has no document of 301 tokens; its longest has 300"),
            std::string::npos);
  options.tokens = 63;
  EXPECT_NE(error_of([&] { inspect(options); }).find("63 tokens are attended densely"),
            std::string::npos);
  options.tokens = 140;
  options.layer = 1;
  EXPECT_NE(error_of([&] { inspect(options); }).find("layer 1 is not sparse; sparse are 0, 3"),
            std::string::npos);
  options.lists_file.clear();
  EXPECT_NE(error_of([&] { inspect(options); }).find("--layer and --last need --lists"),
            std::string::npos);
  InspectOptions source;
  source.folder = kGolden + "/llama_default";
  source.ids_file = source.folder + "/ids.json";
  source.lists_file = file_;
  EXPECT_NE(error_of([&] { inspect(source); }), "no error");
}

}  // namespace
}  // namespace sala::test
