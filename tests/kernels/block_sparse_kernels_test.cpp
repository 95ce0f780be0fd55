// The CUDA kernels of block-sparse attention against the fp64 twin, and for long documents the fp64
// composition (which block_sparse_attention_test holds to the twin): group and head sizes, lengths
// beside every border, packed documents, any order of lists; the same bits at every call.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <utility>
#include <vector>

#include "kernels/attention/block_sparse_cuda.h"
#include "kernels/ops.h"
#include "kernels/twins/attention.h"
#include "tests/kernels/attention_cases.h"

namespace sala::test {
namespace {

constexpr int64_t kBlock = 64;

struct Heads {
  int64_t group, num_kv, size;
};
struct Inputs {
  at::Tensor q, k, v, d_o;
  double scale;
};
using Results = std::vector<at::Tensor>;  // o, lse, dq, dk, dv
const char* const kNames[] = {"o", "lse", "dq", "dk", "dv"};

class BlockSparseKernels : public OpInPlace {
 protected:
  Inputs inputs(int64_t Tq, int64_t Tk, const Heads& h) const {
    const int64_t NH = h.group * h.num_kv;
    return {random({Tq, NH, h.size}), random({Tk, h.num_kv, h.size}),
            random({Tk, h.num_kv, h.size}), random({Tq, NH, h.size}),
            1 / std::sqrt(static_cast<double>(h.size))};
  }
  static Results run(const Inputs& x, const at::Tensor& blocks, const Documents& q_docs,
                     const Documents& k_docs) {
    const auto [o, lse] =
        block_sparse_attention_forward(x.q, x.k, x.v, blocks, q_docs, k_docs, kBlock, x.scale);
    const auto [dq, dk, dv] = block_sparse_attention_backward(x.d_o, x.q, x.k, x.v, o, lse, blocks,
                                                              q_docs, k_docs, kBlock, x.scale);
    return {o, lse, dq, dk, dv};
  }
  static Results twin(const Inputs& x, const at::Tensor& blocks, const Documents& q_docs,
                      const Documents& k_docs) {
    const at::Tensor q = exact(x.q), k = exact(x.k), v = exact(x.v), d_o = exact(x.d_o);
    const auto [o, lse] =
        block_sparse_attention_forward_twin(q, k, v, blocks, q_docs, k_docs, kBlock, x.scale);
    const auto [dq, dk, dv] = block_sparse_attention_backward_twin(d_o, q, k, v, o, lse, blocks,
                                                                   q_docs, k_docs, kBlock, x.scale);
    return {o, lse, dq, dk, dv};
  }
  static Results in_fp64(const Inputs& x, const at::Tensor& blocks, const Documents& docs) {
    return run({x.q.to(at::kDouble), x.k.to(at::kDouble), x.v.to(at::kDouble),
                x.d_o.to(at::kDouble), x.scale},
               blocks, docs, docs);
  }
  // Norm of the difference over the norm of the reference. Entries of a gradient that is exactly
  // zero (one visible key) leave rounding errors: they count as small values do.
  static void expect_close(const Results& got, const Results& expected) {
    for (size_t i = 0; i < got.size(); ++i) {
      const at::Tensor reference = exact(expected[i]);
      const double error = (exact(got[i]) - reference).norm().item<double>();
      const double floor = 1e-3 * std::sqrt(static_cast<double>(reference.numel()));
      EXPECT_LE(error / (reference.norm().item<double>() + floor), i == 0 ? 5e-3 : 1e-2)
          << kNames[i];
    }
  }
  void expect_twin(const DocumentCase& queries, const DocumentCase& keys, const Heads& heads,
                   int64_t K) const {
    expect_twin_with(random_lists(queries.on(at::kCPU), keys.on(at::kCPU), heads.num_kv, K, kBlock),
                     queries, keys, heads);
  }
  void expect_twin_with(const at::Tensor& blocks, const DocumentCase& queries,
                        const DocumentCase& keys, const Heads& heads) const {
    SCOPED_TRACE(::testing::Message() << queries.num_tokens << " queries, group " << heads.group
                                      << ", head size " << heads.size);
    const Inputs x = inputs(queries.num_tokens, keys.num_tokens, heads);
    ASSERT_TRUE(block_sparse_kernels_run(x.q, x.k, kBlock, x.scale));
    const auto run_here = [&] {
      return run(x, blocks.to(device()), queries.on(device()), keys.on(device()));
    };
    const Results got = run_here();
    expect_same_bits(got, run_here());
    expect_close(got, twin(x, blocks, queries.on(at::kCPU), keys.on(at::kCPU)));
  }
  // Every query lists all blocks. The forward only: where one block has all of a row's weight, d_o
  // (v - o) cancels to what bf16 left of o.
  void expect_forward_twin(const Inputs& x, const DocumentCase& queries,
                           const DocumentCase& keys) const {
    SCOPED_TRACE(::testing::Message() << "heads of " << x.q.size(2) << ", group " << x.q.size(1));
    ASSERT_TRUE(block_sparse_kernels_run(x.q, x.k, kBlock, x.scale));
    const int64_t NB = (keys.num_tokens + kBlock - 1) / kBlock;
    const at::Tensor blocks =
        at::arange(NB, at::kInt).expand({1, queries.num_tokens, NB}).contiguous();
    const auto run_here = [&]() -> Results {
      const auto [o, lse] =
          block_sparse_attention_forward(x.q, x.k, x.v, blocks.to(device()), queries.on(device()),
                                         keys.on(device()), kBlock, x.scale);
      return {o, lse};
    };
    const auto [o, lse] = block_sparse_attention_forward_twin(exact(x.q), exact(x.k), exact(x.v),
                                                              blocks, queries.on(at::kCPU),
                                                              keys.on(at::kCPU), kBlock, x.scale);
    const Results got = run_here();
    expect_same_bits(got, run_here());
    expect_close(got, {o, lse});
    EXPECT_LE((exact(got[1]) - lse).abs().max().item<double>(), 1e-2);  // nats, of up to 170
  }
  static void expect_same_bits(const Results& first, const Results& second) {
    for (size_t i = 0; i < first.size(); ++i) {
      EXPECT_TRUE(bit_equal(first[i], second[i])) << kNames[i];
    }
  }
};

// Lists of one document: a token's own block, and the first block where `lists_first(token)`.
at::Tensor first_and_own(int64_t T, const std::function<bool(int64_t)>& lists_first) {
  at::Tensor blocks = at::full({1, T, 2}, -1, at::kInt);
  int* list = blocks.data_ptr<int>();
  for (int64_t t = 0; t < T; ++t, list += 2) {
    int* next = list;
    if (t >= kBlock && lists_first(t)) *next++ = 0;
    *next = static_cast<int>(t / kBlock);
  }
  return blocks;
}

TEST_P(BlockSparseKernels, TakeEveryGroupAndHeadSize) {
  const DocumentCase docs{{0, 70}, 230};
  for (const int64_t HS : {64, 128}) {
    for (int64_t G = 1; G <= 16; ++G) expect_twin(docs, docs, {G, G % 3 == 0 ? 2 : 1, HS}, 6);
  }
}

TEST_P(BlockSparseKernels, TakeAllLengths) {
  for (const int64_t T : {1, 15, 16, 31, 63, 64, 65, 127, 128}) {
    for (const int64_t HS : {64, 128}) expect_twin({{0}, T}, {{0}, T}, {16, 1, HS}, 4);
  }
}

// Hopper's kernel of dk and dv copies four tokens of a column at once where they are neighbours.
// The first block's column is runs of 1 .. 9 tokens, one token missing after each.
TEST_P(BlockSparseKernels, TakeColumnsWhoseTokensAreNeighboursInRuns) {
  const int64_t T = 205;
  const at::Tensor blocks = first_and_own(T, [](int64_t token) {
    int64_t place = (token - kBlock) % 54, run = 1;  // 2 + 3 + .. + 10 tokens, and again
    for (; place > run; ++run) place -= run + 1;
    return place < run;
  });
  for (const int64_t HS : {64, 128}) {
    for (int64_t G = 1; G <= 16; ++G) expect_twin_with(blocks, {{0}, T}, {{0}, T}, {G, 1, HS});
  }
}

// The same four are not all there: the second block's column is the last 1 .. 9 tokens.
TEST_P(BlockSparseKernels, TakeColumnsThatEndBetweenNeighbours) {
  for (int64_t T = kBlock + 1; T < kBlock + 10; ++T) {
    const at::Tensor blocks = first_and_own(T, [](int64_t) { return true; });
    for (const int64_t HS : {64, 128}) {
      for (const int64_t G : {3, 12, 16}) {
        expect_twin_with(blocks, {{0}, T}, {{0}, T}, {G, 1, HS});
      }
    }
  }
}

TEST_P(BlockSparseKernels, TakePackedDocumentsAndFewerQueriesThanKeys) {
  const DocumentCase packed{{0, 1, 60, 130, 131, 195}, 420};
  expect_twin(packed, packed, {16, 2, 64}, 5);
  expect_twin(packed, packed, {3, 3, 128}, 5);
  for (const int64_t G : {7, 16}) expect_twin({{0, 3, 4}, 50}, {{0, 70, 370}, 900}, {G, 2, 128}, 6);
}

TEST_P(BlockSparseKernels, WithAllBlocksListedEqualDenseAttention) {
  for (const int64_t T : {6143, 6144, 6145}) {
    const Inputs x = inputs(T, T, {16, 1, 128});
    const Documents docs = Documents::from_starts({0, 1000}, T, device());
    const at::Tensor blocks =
        at::arange(96, at::TensorOptions(device()).dtype(at::kInt)).expand({1, T, 96}).contiguous();
    const Results got = run(x, blocks, docs, docs);
    expect_close(got, in_fp64(x, blocks, docs));
    const auto [o, lse] = dense_attention_forward(x.q, x.k, x.v, docs, docs, x.scale);
    const auto [dq, dk, dv] =
        dense_attention_backward(x.d_o, x.q, x.k, x.v, o, lse, docs, docs, x.scale);
    expect_close(got, {o, lse, dq, dk, dv});
  }
}

// Block 0 is in every list, so that its tokens are cut into pieces.
TEST_P(BlockSparseKernels, ManyPiecesRunTwiceGiveTheSameBitsWhateverTheOrderOfLists) {
  const int64_t T = 5000;
  for (const int64_t HS : {64, 128}) {
    const Inputs x = inputs(T, T, {8, 2, HS});
    const Documents docs = Documents::from_starts({0, 90}, T, device());
    at::Tensor blocks = random_lists(docs, docs, 2, 20, kBlock);
    blocks.select(2, 0).fill_(0);
    blocks = blocks.to(device());
    const Results first = run(x, blocks, docs, docs), second = run(x, blocks, docs, docs);
    expect_same_bits(first, second);
    expect_close(first, in_fp64(x, blocks, docs));
    // Descending; what is no block goes to the end.
    const at::Tensor turned = std::get<0>(blocks.sort(/*dim=*/2, /*descending=*/true));
    const Results other = run(x, turned, docs, docs);
    expect_close(other, first);
  }
}

TEST_P(BlockSparseKernels, RowsThatListNothingAreZeroAndNaNStaysInItsDocument) {
  const int64_t T = 300;
  Inputs x = inputs(T, T, {4, 1, 128});
  const Documents docs = Documents::from_starts({0, 70, 200}, T, device());
  at::Tensor blocks = random_lists(docs, docs, 1, 4, kBlock).to(device());
  blocks.slice(1, 100, 103).fill_(-1);
  const Results before = run(x, blocks, docs, docs);
  for (const size_t i : {0, 2}) {
    EXPECT_EQ(before[i].slice(0, 100, 103).abs().max().item<double>(), 0) << kNames[i];
  }
  for (const at::Tensor& result : {before[0], before[2], before[3], before[4]}) {
    EXPECT_TRUE(result.isfinite().all().item<bool>());
  }
  for (at::Tensor* tensor : {&x.q, &x.k, &x.v, &x.d_o}) tensor->select(0, 150).fill_(NAN);
  x.k.select(0, 199).fill_(HUGE_VAL);
  const Results after = run(x, blocks, docs, docs);
  for (const size_t i : {0, 2, 3, 4}) {
    EXPECT_TRUE(bit_equal(before[i].slice(0, 0, 70), after[i].slice(0, 0, 70))) << kNames[i];
    EXPECT_TRUE(bit_equal(before[i].slice(0, 200), after[i].slice(0, 200))) << kNames[i];
  }
}

// Beside normal products each block has a height of its own, in bits of the weights: what a row's
// running softmax must follow. Heads take heights as they are, not at all, turned over and by half,
// so that rows that must move share a warp with rows that need not.
TEST_P(BlockSparseKernels, FollowProductsThatOutgrowEachOtherFromBlockToBlock) {
  const std::vector<std::vector<double>> all_heights = {
      {0, 5, 10, 15, 20, 25, 30},           // each within reach of the one before
      {0, 9, 18, 27, 36, 45, 54},           // none
      {0, 7.5, 8.5, -8, 8, 16, 15.5},       // beside 2^8
      {250, 0, -100, -250, 120, 249, 251},  // the first hides the others: their weights are zero
      {-250, 250, -250, 250, 0, 240, 232},  // 500 bits at once: more than fp32 can hold
  };
  const DocumentCase keys{{0}, 7 * kBlock - 3}, queries{{0}, 41};
  for (const int64_t HS : {64, 128}) {
    for (const int64_t G : {3, 8, 16}) {
      Inputs x = inputs(queries.num_tokens, keys.num_tokens, {G, 1, HS});
      const at::Tensor shares = at::tensor({1.0, 0.0, -1.0, 0.5}).repeat({4}).slice(0, 0, G);
      x.q.select(2, 0).copy_(shares * (std::log(2.0) / x.scale));
      for (const std::vector<double>& heights : all_heights) {
        const at::Tensor of_keys = at::tensor(heights).repeat_interleave(kBlock);
        x.k.select(2, 0).copy_(of_keys.slice(0, 0, keys.num_tokens).unsqueeze(1));
        expect_forward_twin(x, queries, keys);
      }
    }
  }
}

// Weights of exactly zero, from the first block on.
TEST_P(BlockSparseKernels, TakeKeysWhoseProductsAreMinusInfinity) {
  const DocumentCase keys{{0}, 4 * kBlock - 3}, queries{{0}, 41};
  for (const int64_t HS : {64, 128}) {
    Inputs x = inputs(queries.num_tokens, keys.num_tokens, {16, 1, HS});
    x.q.select(2, 0).fill_(1);
    const std::vector<std::pair<int64_t, int64_t>> hidden = {
        {0, 64}, {70, 71}, {80, 100}, {128, 192}};
    for (const auto& [begin, end] : hidden) {
      x.k.slice(0, begin, end).select(2, 0).fill_(-HUGE_VAL);
    }
    expect_forward_twin(x, queries, keys);
  }
}

INSTANTIATE_TEST_SUITE_P(Places, BlockSparseKernels,
                         ::testing::Values(Place{at::kCUDA, at::kBFloat16}), place_name);

}  // namespace
}  // namespace sala::test
