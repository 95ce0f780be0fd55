// Block selection: against the twin, forced blocks, short documents, causality, chunked queries.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/ops.h"
#include "kernels/twins/attention.h"
#include "tests/kernels/attention_cases.h"

namespace sala::test {
namespace {

SparseConfig small_config() {
  SparseConfig c;
  c.kernel_size = 8;
  c.kernel_stride = 4;
  c.block_size = 16;
  c.window_size = 32;
  c.topk = 3;
  c.dense_len = 0;
  return c;
}

std::vector<int> listed(const at::Tensor& blocks, int64_t n, int64_t t) {
  std::vector<int> list;
  for (int64_t i = 0; i < blocks.size(2); ++i) {
    const int b = blocks[n][t][i].item<int>();
    if (b >= 0) list.push_back(b);
  }
  return list;
}

// Every list is the twin's, or differs in blocks whose scores are equal but for rounding. Returns
// the number of lists that differ.
int64_t expect_same_choice(const at::Tensor& blocks, const at::Tensor& twin,
                           const at::Tensor& scores, double relative_gap) {
  int64_t differ = 0;
  for (int64_t n = 0; n < twin.size(0); ++n) {
    for (int64_t t = 0; t < twin.size(1); ++t) {
      const std::vector<int> a = listed(blocks, n, t), b = listed(twin, n, t);
      if (a == b) continue;
      ++differ;
      EXPECT_EQ(a.size(), b.size()) << "KV head " << n << ", query " << t;
      std::vector<int> swapped;
      std::set_symmetric_difference(a.begin(), a.end(), b.begin(), b.end(),
                                    std::back_inserter(swapped));
      double low = std::numeric_limits<double>::infinity(), high = 0;
      for (const int block : swapped) {
        const double s = scores[n][t][block].item<double>();
        low = std::min(low, s);
        high = std::max(high, s);
      }
      EXPECT_LE(high - low, relative_gap * high) << "KV head " << n << ", query " << t;
    }
  }
  return differ;
}

class BlockSelect : public OpInPlace {};

TEST_P(BlockSelect, EqualsTheTwin) {
  const SparseConfig config = small_config();
  struct Case {
    DocumentCase docs;
    int64_t NH, NKV, HS;
  };
  const std::vector<Case> cases = {{{{0}, 1}, 4, 2, 32},
                                   {{{0}, 200}, 3, 1, 64},
                                   {{{0}, 191}, 2, 2, 32},
                                   {{{0, 7, 8, 170}, 330}, 4, 2, 32},
                                   {{{0, 161}, 300}, 16, 1, 128}};
  for (const Case& c : cases) {
    SCOPED_TRACE(::testing::Message() << "T " << c.docs.num_tokens << ", " << c.NH << "/" << c.NKV);
    const at::Tensor q = random({c.docs.num_tokens, c.NH, c.HS});
    const at::Tensor k = random({c.docs.num_tokens, c.NKV, c.HS});
    const Documents docs = c.docs.on(device()), host = c.docs.on(at::kCPU);
    const double scale = 1 / std::sqrt(static_cast<double>(c.HS));
    const at::Tensor blocks = on_cpu(block_select(q, k, docs, docs, config, scale));
    const at::ScalarType kept = GetParam().dtype;
    const at::Tensor twin = block_select_twin(exact(q), exact(k), host, host, config, scale, kept);
    ASSERT_EQ(blocks.sizes(), twin.sizes());
    EXPECT_EQ(blocks.scalar_type(), at::kInt);
    if (GetParam().dtype == at::kDouble) {
      EXPECT_TRUE(bit_equal(blocks, twin));
    } else {
      const at::Tensor scores =
          block_scores_twin(exact(q), exact(k), host, host, config, scale, kept);
      EXPECT_LE(expect_same_choice(blocks, twin, scores, 1e-5), c.docs.num_tokens * c.NKV / 100);
    }
  }
}

TEST_P(BlockSelect, ListsForcedBlocksAscendingAndNothingAfterTheQuery) {
  const SparseConfig config = small_config();
  const int64_t T = 400;
  const Documents docs = Documents::from_starts({0, 90}, T, device());
  const at::Tensor blocks =
      on_cpu(block_select(random({T, 4, 32}), random({T, 2, 32}), docs, docs, config, 0.2));
  for (int64_t n = 0; n < 2; ++n) {
    for (int64_t t = 0; t < T; ++t) {
      const int own = static_cast<int>((t < 90 ? t : t - 90) / config.block_size);
      const std::vector<int> list = listed(blocks, n, t);
      ASSERT_EQ(static_cast<int64_t>(list.size()),
                std::min<int64_t>(own + 1, config.blocks_per_token()));
      EXPECT_TRUE(std::is_sorted(list.begin(), list.end()));
      EXPECT_EQ(std::adjacent_find(list.begin(), list.end()), list.end());
      EXPECT_EQ(list.front(), 0);
      EXPECT_EQ(list.back(), own);
      for (int b = std::max<int>(own - 2, 0); b <= own; ++b) {
        EXPECT_TRUE(std::binary_search(list.begin(), list.end(), b)) << b << " of query " << t;
      }
    }
  }
}

TEST_P(BlockSelect, QueriesInPiecesChooseTheSame) {
  const SparseConfig config = small_config();
  const int64_t T = 300;
  const at::Tensor q = random({T, 4, 32}), k = random({T, 2, 32});
  const Documents whole = Documents::single(T, device());
  const at::Tensor all = on_cpu(block_select(q, k, whole, whole, config, 0.2));
  const at::Tensor scores =
      block_scores_twin(exact(q), exact(k), Documents::single(T, at::kCPU),
                        Documents::single(T, at::kCPU), config, 0.2, GetParam().dtype);
  for (const auto& [begin, end] :
       std::vector<std::pair<int64_t, int64_t>>{{0, 97}, {97, 255}, {255, 256}, {299, 300}}) {
    const at::Tensor piece = on_cpu(block_select(q.slice(0, begin, end), k.slice(0, 0, end),
                                                 Documents::single(end - begin, device()),
                                                 Documents::single(end, device()), config, 0.2));
    EXPECT_LE(
        expect_same_choice(piece, all.slice(1, begin, end), scores.slice(1, begin, end), 1e-5), 2);
  }
}

INSTANTIATE_TEST_SUITE_P(Places, BlockSelect, all_places(), place_name);

TEST(BlockSelectCpu, TheFutureAndOtherDocumentsDoNotMatter) {
  at::manual_seed(11);
  const SparseConfig config = small_config();
  const int64_t T = 520;
  const Documents docs = Documents::from_starts({0, 120, 420}, T, at::kCPU);
  const at::Tensor q = at::randn({T, 3, 32}, at::kDouble);
  at::Tensor k = at::randn({T, 1, 32}, at::kDouble);
  const at::Tensor before = block_select(q, k, docs, docs, config, 0.2);
  k.slice(0, 300, 420).mul_(-2).add_(0.5);
  const at::Tensor after = block_select(q, k, docs, docs, config, 0.2);
  EXPECT_TRUE(bit_equal(before.slice(1, 0, 300), after.slice(1, 0, 300)));
  EXPECT_TRUE(bit_equal(before.slice(1, 420), after.slice(1, 420)));
  EXPECT_FALSE(at::equal(before, after));
}

TEST(BlockSelectCpu, AWindowCountsOnceItsLastTokenIsReached) {
  // One key direction that the queries love, in tokens 68..75: windows 16 (64..71), 17 (68..75),
  // 18 (72..79) see it, the full window 17 most. Its block is 4; window 17 is in block 4 only.
  SparseConfig config = small_config();
  config.window_size = 0;
  config.topk = 2;
  const int64_t T = 240;
  at::manual_seed(12);
  at::Tensor q = at::zeros({T, 1, 32}, at::kDouble), k = 1e-3 * at::randn({T, 1, 32}, at::kDouble);
  q.select(2, 0).fill_(1);
  k.slice(0, 68, 76).select(2, 0).fill_(8);
  const Documents docs = Documents::single(T, at::kCPU);
  const at::Tensor blocks = block_select(q, k, docs, docs, config, 1.0);
  // K = 2 with block 0 and the own block forced leaves no choice; three blocks leave one.
  EXPECT_EQ(listed(blocks, 0, 239), (std::vector<int>{0, 14}));
  config.topk = 3;
  const at::Tensor chosen = block_select(q, k, docs, docs, config, 1.0);
  EXPECT_EQ(listed(chosen, 0, 239), (std::vector<int>{0, 4, 14}));
  EXPECT_EQ(listed(chosen, 0, 100), (std::vector<int>{0, 4, 6}));
}

TEST(BlockSelectCpu, EqualScoresChooseTheLowerBlock) {
  SparseConfig config = small_config();
  const int64_t T = 320;
  const at::Tensor q = at::ones({T, 2, 32}), k = at::ones({T, 1, 32});
  const Documents docs = Documents::single(T, at::kCPU);
  const at::Tensor blocks = block_select(q, k, docs, docs, config, 0.1);
  EXPECT_EQ(listed(blocks, 0, 319), (std::vector<int>{0, 1, 17, 18, 19}));
}

TEST(BlockSelectCpu, RefusesSizesItDoesNotImplement) {
  const at::Tensor q = at::ones({4, 2, 32}), k = at::ones({4, 1, 32});
  const Documents docs = Documents::single(4, at::kCPU);
  SparseConfig config = small_config();
  config.block_size = 32;
  EXPECT_THROW(block_select(q, k, docs, docs, config, 1.0), c10::Error);
  config = small_config();
  config.topk = 1;
  EXPECT_THROW(block_select(q, k, docs, docs, config, 1.0), c10::Error);
}

}  // namespace
}  // namespace sala::test
