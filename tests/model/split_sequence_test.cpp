// A line of tokens split over ranks (threads here): lightning attention through exchanged states,
// dense and block-sparse attention over gathered keys, against the same ops on the whole line.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <vector>

#include "kernels/ops.h"
#include "model/batch.h"
#include "model/mixers/split_sequence.h"
#include "tests/kernels/tolerance.h"
#include "tests/model/thread_comm.h"

namespace sala::test {
namespace {

struct Line {
  std::vector<int64_t> starts;
  int64_t num_tokens;
};

// Borders inside documents, on their starts, documents over three shards, odd lengths, no border
// crossed (120 tokens over 2, 3, 4 ranks), and one token a rank.
const std::vector<Line> kLines = {
    {{0}, 97},
    {{0}, 240},
    {{0, 30, 31, 64, 200}, 257},
    {{0, 30, 40, 60, 80, 90}, 120},
    {{0, 60}, 120},
    {{0, 10, 110}, 121},
    {{0, 1}, 4},
};

Batch line_batch(const Line& line) {
  Batch batch;
  batch.ids = at::arange(line.num_tokens, at::kLong);
  batch.position = at::empty_like(batch.ids);
  batch.docs = Documents::from_starts(line.starts, line.num_tokens, at::kCPU);
  for (int64_t d = 0; d < batch.docs.count(); ++d) {
    batch.position.narrow(0, batch.docs.offsets[d], batch.docs.length(d))
        .copy_(at::arange(batch.docs.length(d), at::kLong));
  }
  batch.global_weight = 3;
  return batch;
}

struct Rows {
  at::Tensor q, k, v, g;  // (T, NH or NKV, HS)
};
using Results = std::vector<at::Tensor>;

// What an attention makes of the rows of one rank: (T, ., .) each.
using Attention = std::function<Results(const Rows&, const Batch&)>;

Results on_shards(const Attention& attention, const Rows& rows, const Batch& line, int num_ranks) {
  std::vector<Results> parts(num_ranks);
  on_ranks(num_ranks, [&](ThreadComm& comm) {
    const Batch batch = make_shard(line, comm);
    const auto cut = [&](const at::Tensor& x) {
      return x.slice(0, batch.shard->begin(), batch.shard->end());
    };
    parts[comm.rank()] = attention({cut(rows.q), cut(rows.k), cut(rows.v), cut(rows.g)}, batch);
    if (!batch.shard->any_crossed()) {
      EXPECT_EQ(comm.num_collectives, 0);
    }
  });
  Results whole;
  for (size_t i = 0; i < parts[0].size(); ++i) {
    std::vector<at::Tensor> pieces;
    for (const Results& part : parts) pieces.push_back(part[i]);
    whole.push_back(at::cat(pieces));
  }
  return whole;
}

constexpr double kScale = 0.3;

Results lightning(const Rows& x, const Batch& batch, const at::Tensor& slopes) {
  at::Tensor initial, d_final;
  if (batch.shard) {
    initial = entering_state(*batch.shard, x.k, x.v, slopes);
    d_final = leaving_gradient(*batch.shard, x.q, x.g, slopes, kScale);
    for (at::Tensor* state : {&initial, &d_final}) {
      if (state->defined()) *state = state->unsqueeze(0);
    }
  }
  const auto [o, state] =
      lightning_forward(x.q, x.k, x.v, slopes, batch.docs, kScale, initial, false);
  const auto [dq, dk, dv, d_initial] =
      lightning_backward(x.g, x.q, x.k, x.v, slopes, batch.docs, kScale, initial, d_final);
  return {o, dq, dk, dv};
}

Documents keys_of(const Batch& batch) {
  return batch.shard ? batch.shard->key_documents() : batch.docs;
}
at::Tensor gathered(const Batch& batch, const at::Tensor& x) {
  return batch.shard ? gather_keys(*batch.shard, x) : x;
}
at::Tensor scattered(const Batch& batch, const at::Tensor& dx) {
  return batch.shard ? scatter_key_gradient(*batch.shard, dx) : dx;
}

Results dense(const Rows& x, const Batch& batch) {
  const Documents k_docs = keys_of(batch);
  const at::Tensor k = gathered(batch, x.k), v = gathered(batch, x.v);
  const auto [o, lse] = dense_attention_forward(x.q, k, v, batch.docs, k_docs, kScale);
  const auto [dq, dk, dv] =
      dense_attention_backward(x.g, x.q, k, v, o, lse, batch.docs, k_docs, kScale);
  return {o, dq, scattered(batch, dk), scattered(batch, dv)};
}

SparseConfig small_blocks() {
  SparseConfig c;
  c.kernel_stride = 2, c.kernel_size = 4, c.block_size = 8;
  c.window_size = 16, c.topk = 3, c.init_blocks = 1;
  return c;
}

Results sparse(const Rows& x, const Batch& batch) {
  const SparseConfig c = small_blocks();
  const Documents k_docs = keys_of(batch);
  const at::Tensor k = gathered(batch, x.k), v = gathered(batch, x.v);
  const at::Tensor lists = block_select(x.q, k, batch.docs, k_docs, c, kScale);
  const auto [o, lse] =
      block_sparse_attention_forward(x.q, k, v, lists, batch.docs, k_docs, c.block_size, kScale);
  const auto [dq, dk, dv] = block_sparse_attention_backward(
      x.g, x.q, k, v, o, lse, lists, batch.docs, k_docs, c.block_size, kScale);
  return {o, dq, scattered(batch, dk), scattered(batch, dv), lists.transpose(0, 1)};
}

class SplitSequence : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  static constexpr int64_t kHeads = 4, kKvHeads = 2, kHeadSize = 16;

  void SetUp() override { at::manual_seed(11); }
  Rows rows(int64_t T, int64_t num_kv_heads) const {
    const auto random = [&](int64_t n) { return at::randn({T, n, kHeadSize}, GetParam()); };
    return {random(kHeads), random(num_kv_heads), random(num_kv_heads), random(kHeads)};
  }
  Tolerance limit() const {
    if (GetParam() == at::kDouble) return {1e-12, 1e-12, 1e-12};
    return tolerance(GetParam());
  }

  void expect_equals_whole(const Attention& attention, int64_t num_kv_heads) {
    for (const Line& line : kLines) {
      const Batch batch = line_batch(line);
      const Rows x = rows(line.num_tokens, num_kv_heads);
      const Results expected = attention(x, batch);
      for (int R = 1; R <= 4; ++R) {
        SCOPED_TRACE(::testing::Message() << line.num_tokens << " tokens, " << line.starts.size()
                                          << " documents, " << R << " ranks");
        const Results got = on_shards(attention, x, batch, R);
        for (size_t i = 0; i < expected.size(); ++i) {
          const bool exact = expected[i].scalar_type() == at::kInt;
          EXPECT_TRUE(exact ? bit_equal(got[i], expected[i]) : close(got[i], expected[i], limit()))
              << "result " << i;
        }
      }
    }
  }

  // Changing every token of one document changes no bit of another's outputs and gradients.
  void expect_documents_apart(const Attention& attention, int64_t num_kv_heads) {
    for (const Line& line : kLines) {
      if (line.starts.size() == 1) continue;
      const Batch batch = line_batch(line);
      const Rows x = rows(line.num_tokens, num_kv_heads);
      for (int R = 1; R <= 4; ++R) {
        const Results before = on_shards(attention, x, batch, R);
        for (int64_t d = 0; d < batch.docs.count(); ++d) {
          const int64_t begin = batch.docs.offsets[d], end = batch.docs.offsets[d + 1];
          Rows other = x;
          for (at::Tensor* t : {&other.q, &other.k, &other.v, &other.g}) {
            *t = t->clone();
            t->slice(0, begin, end).mul_(-3).add_(1);
          }
          const Results after = on_shards(attention, other, batch, R);
          for (size_t i = 0; i < before.size(); ++i) {
            SCOPED_TRACE(::testing::Message() << line.num_tokens << " tokens, " << R << " ranks, "
                                              << "document " << d << ", result " << i);
            EXPECT_TRUE(bit_equal(after[i].slice(0, 0, begin), before[i].slice(0, 0, begin)));
            EXPECT_TRUE(bit_equal(after[i].slice(0, end), before[i].slice(0, end)));
            if (i == 0) {
              EXPECT_FALSE(at::equal(after[i], before[i]));
            }
          }
        }
      }
    }
  }
};

// The rule's slopes beside the slowest head of 32 and one that forgets next to nothing.
at::Tensor slopes() { return at::tensor({0.7, 0.0625, 0.00390625, 1e-4}, at::kDouble); }

TEST_P(SplitSequence, LightningEqualsTheWholeLine) {
  expect_equals_whole([](const Rows& x, const Batch& b) { return lightning(x, b, slopes()); },
                      kHeads);
}

TEST_P(SplitSequence, LightningKeepsDocumentsApart) {
  expect_documents_apart([](const Rows& x, const Batch& b) { return lightning(x, b, slopes()); },
                         kHeads);
}

TEST_P(SplitSequence, FastHeadsForgetWholeShards) {
  const Batch batch = line_batch({{0}, 1600});
  const Rows x = rows(1600, kHeads);
  const at::Tensor fast = at::tensor({5.0, 0.7, 0.3, 0.0}, at::kDouble);
  const Results expected = lightning(x, batch, fast);
  const Results got =
      on_shards([&](const Rows& r, const Batch& b) { return lightning(r, b, fast); }, x, batch, 4);
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(close(got[i], expected[i], limit()));
}

TEST_P(SplitSequence, DenseAttentionEqualsTheWholeLine) { expect_equals_whole(dense, kKvHeads); }
TEST_P(SplitSequence, DenseAttentionKeepsDocumentsApart) {
  expect_documents_apart(dense, kKvHeads);
}
TEST_P(SplitSequence, SparseAttentionEqualsTheWholeLine) { expect_equals_whole(sparse, kKvHeads); }
TEST_P(SplitSequence, SparseAttentionKeepsDocumentsApart) {
  expect_documents_apart(sparse, kKvHeads);
}

INSTANTIATE_TEST_SUITE_P(Types, SplitSequence, ::testing::Values(at::kDouble, at::kFloat),
                         [](const auto& info) { return std::string(at::toString(info.param)); });

TEST(MakeShard, CutsTheLine) {
  const Batch line = line_batch({{0, 30, 31, 64, 200}, 257});
  std::vector<Batch> shards(3);
  on_ranks(3, [&](ThreadComm& comm) {
    const Batch batch = make_shard(line, comm);
    const SequenceShard& shard = *batch.shard;
    EXPECT_EQ(shard.borders, (std::vector<int64_t>{0, 85, 171, 257}));
    EXPECT_EQ(batch.num_tokens(), shard.num_tokens(comm.rank()));
    EXPECT_TRUE(at::equal(batch.ids, line.ids.slice(0, shard.begin(), shard.end())));
    EXPECT_TRUE(at::equal(batch.position, line.position.slice(0, shard.begin(), shard.end())));
    EXPECT_FALSE(batch.targets.defined());
    EXPECT_EQ(batch.global_weight, line.global_weight);
    EXPECT_EQ(shard.whole.offsets, line.docs.offsets);
    const std::vector<std::vector<int64_t>> local = {{0, 30, 31, 64, 85}, {0, 86}, {0, 29, 86}};
    const std::vector<std::vector<int64_t>> keys = {{0, 30, 31, 64, 85}, {0, 107}, {0, 136, 193}};
    EXPECT_EQ(batch.docs.offsets, local[comm.rank()]);
    EXPECT_EQ(shard.key_documents().offsets, keys[comm.rank()]);
    EXPECT_EQ(shard.whole_length(0), comm.rank() == 0 ? 30 : 136);
    EXPECT_THROW(make_shard(batch, comm), c10::Error);
  });
}

TEST(MakeShard, RefusesAnEmptyShard) {
  const Batch line = line_batch({{0}, 2});
  on_ranks(3, [&](ThreadComm& comm) {
    try {
      make_shard(line, comm);
      ADD_FAILURE() << "expected an error";
    } catch (const c10::Error& e) {
      EXPECT_STREQ(e.msg().c_str(),
                   "a line of 2 tokens cannot be split over 3 ranks: each takes at "
                   "least one token");
    }
  });
}

TEST(ThreadRanks, ARankThatFailsEndsTheOthers) {
  EXPECT_THROW(on_ranks(3,
                        [](ThreadComm& comm) {
                          TORCH_CHECK(comm.rank() != 1, "failed");
                          at::Tensor x = at::ones({2});
                          comm.all_reduce_sum(x);
                        }),
               c10::Error);
}

}  // namespace
}  // namespace sala::test
