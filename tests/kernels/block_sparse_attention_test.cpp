// Block-sparse attention: against the twin, gradients, dense equivalence, documents, pieces.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/ops.h"
#include "kernels/twins/attention.h"
#include "tests/kernels/attention_cases.h"

namespace sala::test {
namespace {

constexpr int64_t kSmallBlock = 16;

// Lists with the own block and a random half of the earlier ones, at most K.
at::Tensor random_blocks(const Documents& q_docs, const Documents& k_docs, int64_t NKV, int64_t K) {
  return random_lists(q_docs, k_docs, NKV, K, kSmallBlock);
}

// Every block up to the last, for every query (later ones are hidden by causality).
at::Tensor every_block(int64_t NKV, int64_t Tq, int64_t longest) {
  const int64_t NB = (longest + kSmallBlock - 1) / kSmallBlock;
  return at::arange(NB, at::kInt).expand({NKV, Tq, NB}).contiguous();
}

struct Case {
  std::vector<int64_t> q_starts, k_starts;
  int64_t Tq, Tk, NH, NKV, HS;
};

const std::vector<Case> kCases = {
    {{0}, {0}, 1, 1, 3, 1, 32},
    {{0}, {0}, 65, 65, 9, 3, 64},
    {{0}, {0}, 200, 200, 16, 1, 32},
    {{0, 1, 60, 130}, {0, 1, 60, 130}, 190, 190, 4, 4, 32},
    {{0, 3, 4}, {0, 70, 170}, 50, 260, 6, 2, 128},  // fewer queries than keys
};

class BlockSparseAttention : public OpInPlace {};

TEST_P(BlockSparseAttention, EqualsTheTwin) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(::testing::Message() << "Tq " << c.Tq << ", heads " << c.NH << "/" << c.NKV);
    const Documents q_docs = Documents::from_starts(c.q_starts, c.Tq, device());
    const Documents k_docs = Documents::from_starts(c.k_starts, c.Tk, device());
    const at::Tensor q = random({c.Tq, c.NH, c.HS}), d_o = random({c.Tq, c.NH, c.HS});
    const at::Tensor k = random({c.Tk, c.NKV, c.HS}), v = random({c.Tk, c.NKV, c.HS});
    const at::Tensor blocks = random_blocks(q_docs, k_docs, c.NKV, 6);
    const double scale = 1 / std::sqrt(static_cast<double>(c.HS));
    const auto [o, lse] = block_sparse_attention_forward(q, k, v, blocks.to(device()), q_docs,
                                                         k_docs, kSmallBlock, scale);
    const auto [o_twin, lse_twin] = block_sparse_attention_forward_twin(
        exact(q), exact(k), exact(v), blocks, q_docs, k_docs, kSmallBlock, scale);
    const Tolerance limit = tolerance(GetParam().dtype);
    EXPECT_TRUE(close(o, o_twin, limit)) << "o";
    EXPECT_TRUE(close(lse, lse_twin, limit)) << "lse";
    const auto [dq, dk, dv] = block_sparse_attention_backward(
        d_o, q, k, v, o, lse, blocks.to(device()), q_docs, k_docs, kSmallBlock, scale);
    const auto [dq_twin, dk_twin, dv_twin] =
        block_sparse_attention_backward_twin(exact(d_o), exact(q), exact(k), exact(v), o_twin,
                                             lse_twin, blocks, q_docs, k_docs, kSmallBlock, scale);
    EXPECT_TRUE(close(dq, dq_twin, limit)) << "dq";
    EXPECT_TRUE(close(dk, dk_twin, limit)) << "dk";
    EXPECT_TRUE(close(dv, dv_twin, limit)) << "dv";
  }
}

TEST_P(BlockSparseAttention, WithAllBlocksListedEqualsDenseAttention) {
  for (const Case& c : kCases) {
    if (GetParam().device == at::kCPU && GetParam().dtype == at::kBFloat16) continue;
    SCOPED_TRACE(::testing::Message() << "Tq " << c.Tq << ", heads " << c.NH << "/" << c.NKV);
    const Documents q_docs = Documents::from_starts(c.q_starts, c.Tq, device());
    const Documents k_docs = Documents::from_starts(c.k_starts, c.Tk, device());
    const at::Tensor q = random({c.Tq, c.NH, c.HS}), d_o = random({c.Tq, c.NH, c.HS});
    const at::Tensor k = random({c.Tk, c.NKV, c.HS}), v = random({c.Tk, c.NKV, c.HS});
    const at::Tensor blocks = every_block(c.NKV, c.Tq, k_docs.longest).to(device());
    const auto [o, lse] =
        block_sparse_attention_forward(q, k, v, blocks, q_docs, k_docs, kSmallBlock, 0.2);
    const auto [o_dense, lse_dense] = dense_attention_forward(q, k, v, q_docs, k_docs, 0.2);
    EXPECT_TRUE(close(o, o_dense)) << "o";
    EXPECT_TRUE(close(lse, lse_dense, tolerance(GetParam().dtype))) << "lse";
    const auto [dq, dk, dv] = block_sparse_attention_backward(d_o, q, k, v, o, lse, blocks, q_docs,
                                                              k_docs, kSmallBlock, 0.2);
    const auto [dq_dense, dk_dense, dv_dense] =
        dense_attention_backward(d_o, q, k, v, o_dense, lse_dense, q_docs, k_docs, 0.2);
    EXPECT_TRUE(close(dq, dq_dense)) << "dq";
    EXPECT_TRUE(close(dk, dk_dense)) << "dk";
    EXPECT_TRUE(close(dv, dv_dense)) << "dv";
  }
}

TEST_P(BlockSparseAttention, ManySlabsRunTwiceGiveTheSameBits) {
  const int64_t T = 1100, NH = 6, NKV = 2, HS = 32;
  const Documents docs = Documents::from_starts({0, 90}, T, device());
  const at::Tensor q = random({T, NH, HS}), k = random({T, NKV, HS}), v = random({T, NKV, HS});
  const at::Tensor blocks = random_blocks(docs, docs, NKV, 12).to(device());
  const auto run = [&] {
    const auto [o, lse] =
        block_sparse_attention_forward(q, k, v, blocks, docs, docs, kSmallBlock, 0.2);
    const auto [dq, dk, dv] =
        block_sparse_attention_backward(q, q, k, v, o, lse, blocks, docs, docs, kSmallBlock, 0.2);
    return std::vector<at::Tensor>{o, lse, dq, dk, dv};
  };
  const auto a = run(), b = run();
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(bit_equal(a[i], b[i])) << i;
}

INSTANTIATE_TEST_SUITE_P(Places, BlockSparseAttention, all_places(), place_name);

TEST(BlockSparseAttentionCpu, GradientsAgreeWithFiniteDifferences) {
  at::manual_seed(21);
  const Documents q_docs = Documents::from_starts({0, 40}, 60, at::kCPU);
  const Documents k_docs = Documents::from_starts({0, 90}, 170, at::kCPU);
  const at::Tensor blocks = random_blocks(q_docs, k_docs, 2, 5);
  const at::Tensor q = at::randn({60, 6, 8}, at::kDouble), g = at::randn({60, 6, 8}, at::kDouble);
  const at::Tensor k = at::randn({170, 2, 8}, at::kDouble), v = at::randn({170, 2, 8}, at::kDouble);
  const auto forward = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    return block_sparse_attention_forward(q, k, v, blocks, q_docs, k_docs, kSmallBlock, 0.4);
  };
  const auto loss = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    return (std::get<0>(forward(q, k, v)) * g).sum().item<double>();
  };
  const auto [o, lse] = forward(q, k, v);
  const auto [dq, dk, dv] =
      block_sparse_attention_backward(g, q, k, v, o, lse, blocks, q_docs, k_docs, kSmallBlock, 0.4);
  expect_gradient([&](const at::Tensor& x) { return loss(x, k, v); }, q, dq, "dq");
  expect_gradient([&](const at::Tensor& x) { return loss(q, x, v); }, k, dk, "dk");
  expect_gradient([&](const at::Tensor& x) { return loss(q, k, x); }, v, dv, "dv");
}

TEST(BlockSparseAttentionCpu, OneDocumentDoesNotChangeTheOthers) {
  at::manual_seed(22);
  const int64_t T = 500;
  const Documents docs = Documents::from_starts({0, 50, 333}, T, at::kCPU);
  const at::Tensor blocks = random_blocks(docs, docs, 3, 8);
  at::Tensor q = at::randn({T, 9, 32}), k = at::randn({T, 3, 32}), v = at::randn({T, 3, 32});
  const at::Tensor g = at::randn({T, 9, 32});
  const auto run = [&] {
    const auto [o, lse] =
        block_sparse_attention_forward(q, k, v, blocks, docs, docs, kSmallBlock, 0.2);
    const auto [dq, dk, dv] =
        block_sparse_attention_backward(g, q, k, v, o, lse, blocks, docs, docs, kSmallBlock, 0.2);
    return std::vector<at::Tensor>{o, dq, dk, dv};
  };
  const auto before = run();
  for (at::Tensor* x : {&q, &k, &v}) x->slice(0, 50, 333).mul_(-2).add_(1);
  const auto after = run();
  for (size_t i = 0; i < before.size(); ++i) {
    EXPECT_TRUE(bit_equal(before[i].slice(0, 0, 50), after[i].slice(0, 0, 50))) << i;
    EXPECT_TRUE(bit_equal(before[i].slice(0, 333), after[i].slice(0, 333))) << i;
  }
}

TEST(BlockSparseAttentionCpu, QueriesInPiecesEqualAllAtOnce) {
  at::manual_seed(23);
  const int64_t T = 260;
  const Documents whole = Documents::single(T, at::kCPU);
  const at::Tensor q = at::randn({T, 4, 32}), k = at::randn({T, 2, 32}), v = at::randn({T, 2, 32});
  const at::Tensor blocks = random_blocks(whole, whole, 2, 6);
  const at::Tensor o =
      std::get<0>(block_sparse_attention_forward(q, k, v, blocks, whole, whole, kSmallBlock, 0.2));
  for (const auto& [begin, end] :
       std::vector<std::pair<int64_t, int64_t>>{{0, 97}, {97, 259}, {259, 260}}) {
    const at::Tensor piece = std::get<0>(block_sparse_attention_forward(
        q.slice(0, begin, end), k.slice(0, 0, end), v.slice(0, 0, end),
        blocks.slice(1, begin, end).contiguous(), Documents::single(end - begin, at::kCPU),
        Documents::single(end, at::kCPU), kSmallBlock, 0.2));
    EXPECT_TRUE(close(piece, o.slice(0, begin, end)));
  }
}

}  // namespace
}  // namespace sala::test
