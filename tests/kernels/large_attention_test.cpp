// Attention, selection and the decode step on tensors of more than 2^32 elements: no offset wraps.
// What comes at the end of the sequence is computed again from small tensors. Skipped where the
// device has too little memory.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/decode.h"
#include "kernels/ops.h"
#include "tests/kernels/large_tensors.h"

namespace sala::test {
namespace {

constexpr int64_t T = kManyTokens, NH = kManyHeads, HS = kWideHead;
constexpr int64_t kBlock = 64;

class LargeAttentionCuda : public LargeTensors {
 protected:
  static Documents single(int64_t num_tokens) { return Documents::single(num_tokens, at::kCUDA); }
  // As many documents as fit, of `length` tokens each; the last is shorter.
  static Documents cut(int64_t length) {
    std::vector<int64_t> starts;
    for (int64_t start = 0; start < T; start += length) starts.push_back(start);
    return Documents::from_starts(starts, T, at::kCUDA);
  }
};

// Norm of the difference over the norm.
double error_of(const at::Tensor& got, const at::Tensor& expected) {
  const at::Tensor reference = expected.to(at::kDouble);
  return (got.to(at::kDouble) - reference).norm().item<double>() / reference.norm().item<double>();
}

// The slowest head forgets in 256 tokens: what lies 7K tokens back is nothing.
TEST_F(LargeAttentionCuda, Lightning) {
  if (!has_room(68)) GTEST_SKIP() << "needs 68 GiB";
  constexpr int64_t kRecent = 8192, kTail = 1000;
  const at::Tensor q = random({T, NH, HS}), k = random({T, NH, HS}), v = random({T, NH, HS}),
                   d_o = random({T, NH, HS}), slopes = lightning_slopes(NH);
  const double scale = 1 / std::sqrt(double(HS));
  const auto recent = [](const at::Tensor& x) { return last_rows(x, kRecent).to(at::kDouble); };
  const at::Tensor rq = recent(q), rk = recent(k), rv = recent(v), rd = recent(d_o);
  const auto [expected_o, expected_state] =
      lightning_forward(rq, rk, rv, slopes, single(kRecent), scale);
  const auto [expected_dq, expected_dk, expected_dv, none] =
      lightning_backward(rd, rq, rk, rv, slopes, single(kRecent), scale);
  {
    const auto [o, state] = lightning_forward(q, k, v, slopes, single(T), scale);
    EXPECT_LE(error_of(last_rows(o, kTail), last_rows(expected_o, kTail)), 5e-3);
    EXPECT_LE(error_of(state, expected_state), 5e-3);
  }
  const auto [dq, dk, dv, no_initial] = lightning_backward(d_o, q, k, v, slopes, single(T), scale);
  EXPECT_LE(error_of(last_rows(dq, kTail), last_rows(expected_dq, kTail)), 5e-3);
  EXPECT_LE(error_of(last_rows(dk, kTail), last_rows(expected_dk, kTail)), 5e-3);
  EXPECT_LE(error_of(last_rows(dv, kTail), last_rows(expected_dv, kTail)), 5e-3);
}

// Block 0, one half as far from the start, and the last four.
at::Tensor lists_of(int64_t NKV) {
  constexpr int64_t K = 6;
  const at::TensorOptions ints = at::TensorOptions(at::kCUDA).dtype(at::kInt);
  const at::Tensor own = at::arange(T, ints).floor_divide(kBlock).unsqueeze(1);
  const at::Tensor place = at::arange(K, ints);
  const at::Tensor far =
      at::cat({at::zeros_like(own), own.floor_divide(2), own - 3, own - 2, own - 1, own}, 1);
  const at::Tensor near = at::where(place <= own, place, -1);
  return at::where(own >= 8, far, near).to(at::kInt).expand({NKV, T, K}).contiguous();
}

// Many keys as well as many queries, and the groups of MiniCPM-SALA. The last queries of the last
// KV head, and the keys that only they see, are computed again with that head alone.
TEST_F(LargeAttentionCuda, BlockSparse) {
  for (const int64_t NKV : {int64_t{2}, NH}) {
    if (!has_room(NKV == 2 ? 46 : 84)) GTEST_SKIP() << "needs 84 GiB";
    SCOPED_TRACE(::testing::Message() << NKV << " KV heads");
    const int64_t G = NH / NKV, first = (T / kBlock - 2) * kBlock, n = T - first;
    const at::Tensor q = random({T, NH, HS}), d_o = random({T, NH, HS}), k = random({T, NKV, HS}),
                     v = random({T, NKV, HS}), blocks = lists_of(NKV);
    const double scale = 1 / std::sqrt(double(HS));
    const auto last_group = [&](const at::Tensor& x) {
      return last_rows(x, n).slice(1, NH - G).contiguous();
    };
    const auto last_head = [&](const at::Tensor& x) { return x.slice(1, NKV - 1).contiguous(); };
    const at::Tensor qs = last_group(q), ks = last_head(k), vs = last_head(v);
    const at::Tensor lists = blocks.slice(0, NKV - 1).slice(1, first).contiguous();
    const auto [os, lse_s] =
        block_sparse_attention_forward(qs, ks, vs, lists, single(n), single(T), kBlock, scale);
    const auto [dqs, dks, dvs] = block_sparse_attention_backward(
        last_group(d_o), qs, ks, vs, os, lse_s, lists, single(n), single(T), kBlock, scale);

    const auto [o, lse] =
        block_sparse_attention_forward(q, k, v, blocks, single(T), single(T), kBlock, scale);
    EXPECT_TRUE(bit_equal(last_group(o), os));
    EXPECT_TRUE(bit_equal(lse.slice(0, NH - G).slice(1, first), lse_s));
    const auto [dq, dk, dv] = block_sparse_attention_backward(d_o, q, k, v, o, lse, blocks,
                                                              single(T), single(T), kBlock, scale);
    EXPECT_TRUE(bit_equal(last_group(dq), dqs));
    EXPECT_TRUE(bit_equal(last_rows(last_head(dk), n), last_rows(dks, n)));
    EXPECT_TRUE(bit_equal(last_rows(last_head(dv), n), last_rows(dvs, n)));
    EXPECT_TRUE(dk.isfinite().all().item<bool>());
  }
}

TEST_F(LargeAttentionCuda, SelectionInOneDocument) {
  if (!has_room(24)) GTEST_SKIP() << "needs 24 GiB";
  constexpr int64_t n = 100;
  const at::Tensor q = random({T, NH, HS}), k = random({T, 2, HS});
  const at::Tensor lists = block_select(q, k, single(T), single(T), SparseConfig(), 0.1);
  const at::Tensor last =
      block_select(last_rows(q, n), k, single(n), single(T), SparseConfig(), 0.1);
  EXPECT_TRUE(bit_equal(lists.slice(1, T - n), last));
}

// Lists of more than 2^31 entries, keys of more than 2^32 elements.
TEST_F(LargeAttentionCuda, SelectionOfEveryHeadByItself) {
  if (!has_room(56)) GTEST_SKIP() << "needs 56 GiB";
  const Documents docs = cut(12000);
  const int64_t n = docs.length(docs.count() - 1);
  const at::Tensor q = random({T, NH, HS}), k = random({T, NH, HS});
  const at::Tensor lists = block_select(q, k, docs, docs, SparseConfig(), 0.1);
  ASSERT_GT(lists.numel(), int64_t{1} << 31);
  const at::Tensor last =
      block_select(last_rows(q, n), last_rows(k, n), single(n), single(n), SparseConfig(), 0.1);
  EXPECT_TRUE(bit_equal(lists.slice(1, T - n), last));
}

TEST_F(LargeAttentionCuda, DenseOfPackedDocuments) {
  if (!has_room(90)) GTEST_SKIP() << "needs 90 GiB";
  const Documents docs = cut(4096);
  const int64_t n = docs.length(docs.count() - 1);
  const at::Tensor q = random({T, NH, HS}), d_o = random({T, NH, HS}), k = random({T, 2, HS}),
                   v = random({T, 2, HS});
  const auto [o, lse] = dense_attention_forward(q, k, v, docs, docs, 0.1);
  const auto [os, lse_s] = dense_attention_forward(last_rows(q, n), last_rows(k, n),
                                                   last_rows(v, n), single(n), single(n), 0.1);
  EXPECT_TRUE(close(last_rows(o, n), os));
  const auto [dq, dk, dv] = dense_attention_backward(d_o, q, k, v, o, lse, docs, docs, 0.1);
  const auto [dqs, dks, dvs] =
      dense_attention_backward(last_rows(d_o, n), last_rows(q, n), last_rows(k, n), last_rows(v, n),
                               os, lse_s, single(n), single(n), 0.1);
  EXPECT_TRUE(close(last_rows(dq, n), dqs));
  EXPECT_TRUE(close(last_rows(dk, n), dks));
  EXPECT_TRUE(close(last_rows(dv, n), dvs));
}

// The last of many sequences, whose caches hold more than 2^32 elements, against it alone.
TEST_F(LargeAttentionCuda, DecodeStep) {
  if (!has_room(26)) GTEST_SKIP() << "needs 26 GiB";
  constexpr int64_t S = 17, kCapacity = (int64_t{1} << 17) + 320, NKV = 16;
  static_assert(S * kCapacity * NKV * HS > int64_t{1} << 32);
  const SparseConfig config;
  const auto cache_of = [&](int64_t num_sequences) {
    return make_key_cache(
        {num_sequences, kCapacity, NH, NKV, HS, at::kBFloat16, at::kCUDA, &config});
  };
  const int64_t length = kCapacity - 3;
  const at::Tensor k = random({length - 1, NKV, HS}), v = random(k.sizes());
  const at::Tensor q = random({S, NH, HS}), new_k = random({S, NKV, HS}),
                   new_v = random(new_k.sizes());
  const auto run = [&](int64_t num_sequences) -> std::vector<at::Tensor> {
    KeyCache cache = cache_of(num_sequences);
    DecodeLengths lengths(num_sequences, at::kCUDA);
    std::vector<int64_t> numbers(num_sequences, 1);
    numbers.back() = length;
    lengths.set(numbers);
    write_keys(cache, num_sequences - 1, 0, k, v, config);
    append_keys(cache, lengths, last_rows(new_k, num_sequences), last_rows(new_v, num_sequences),
                config);
    const at::Tensor queries = last_rows(q, num_sequences);
    const at::Tensor blocks = decode_select(queries, cache, lengths, config, 0.1);
    const at::Tensor dense = decode_attention(queries, cache, lengths, {}, config, 0.1);
    const at::Tensor sparse = decode_attention(queries, cache, lengths, blocks, config, 0.1);
    return {blocks.slice(1, num_sequences - 1), dense[num_sequences - 1],
            sparse[num_sequences - 1]};
  };
  const std::vector<at::Tensor> got = run(S), alone = run(1);
  for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(bit_equal(got[i], alone[i])) << i;
}

TEST_F(LargeAttentionCuda, LightningDecodeStep) {
  if (!has_room(20)) GTEST_SKIP() << "needs 20 GiB";
  constexpr int64_t S = 8200;
  static_assert(S * NH * HS * HS > int64_t{1} << 32);
  const at::Tensor q = random({S, NH, HS}), k = random({S, NH, HS}), v = random({S, NH, HS});
  at::Tensor state = at::randn({S, NH, HS, HS}, bf16().dtype(at::kFloat));
  at::Tensor last = state.slice(0, S - 1).clone();
  const at::Tensor slopes = lightning_slopes(NH);
  const at::Tensor o = lightning_decode(q, k, v, slopes, 0.1, state);
  const at::Tensor alone =
      lightning_decode(last_rows(q, 1), last_rows(k, 1), last_rows(v, 1), slopes, 0.1, last);
  EXPECT_TRUE(bit_equal(last_rows(o, 1), alone));
  EXPECT_TRUE(bit_equal(state.slice(0, S - 1), last));
}

}  // namespace
}  // namespace sala::test
