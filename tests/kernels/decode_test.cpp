// The decode step against its twins, in every place: group and head sizes, lengths beside every
// border, sequences that look at all keys beside others that select; kept compressed keys against
// those made at once.

#include "kernels/decode.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/selection/composed.h"
#include "kernels/twins/attention.h"
#include "kernels/twins/decode.h"
#include "tests/kernels/attention_cases.h"

namespace sala::test {
namespace {

// Blocks of 16 tokens: 3 chosen beyond 3 local ones; sequences of dense_len tokens select.
SparseConfig small_blocks(int64_t dense_len = 96) {
  return {.kernel_size = 8,
          .kernel_stride = 4,
          .init_blocks = 1,
          .block_size = 16,
          .window_size = 32,
          .topk = 4,
          .dense_len = dense_len};
}

struct Sizes {
  int64_t group, num_kv, head_size;
  double scale() const { return 1 / std::sqrt(static_cast<double>(head_size)); }
};

class Decode : public OpInPlace {
 protected:
  KeyCache cache_for(const std::vector<int64_t>& lengths, int64_t capacity, const Sizes& h,
                     const SparseConfig& config) const {
    KeyCache cache = make_key_cache({.num_sequences = static_cast<int64_t>(lengths.size()),
                                     .capacity = capacity,
                                     .num_heads = h.group * h.num_kv,
                                     .num_kv_heads = h.num_kv,
                                     .head_size = h.head_size,
                                     .dtype = GetParam().dtype,
                                     .device = device(),
                                     .sparse = &config});
    cache.k.fill_(NAN);  // what nobody wrote must not matter
    cache.v.fill_(NAN);
    for (size_t s = 0; s < lengths.size(); ++s) {
      if (lengths[s] == 0) continue;
      const at::Tensor k = random({lengths[s], h.num_kv, h.head_size});
      write_keys(cache, static_cast<int64_t>(s), 0, k, random(k.sizes()), config);
    }
    return cache;
  }
  DecodeLengths lengths_of(const std::vector<int64_t>& lengths) const {
    DecodeLengths made(static_cast<int64_t>(lengths.size()), device());
    made.set(lengths);
    return made;
  }
  at::Tensor queries(int64_t S, const Sizes& h) const {
    return random({S, h.group * h.num_kv, h.head_size});
  }
  // block_select's lists for the last token of each sequence, (NKV, S, K).
  static at::Tensor whole_lists(const at::Tensor& q, const KeyCache& cache,
                                const std::vector<int64_t>& lengths, const SparseConfig& config,
                                double scale) {
    std::vector<at::Tensor> lists;
    for (size_t i = 0; i < lengths.size(); ++i) {
      const auto s = static_cast<int64_t>(i);
      const at::Device device = q.device();
      lists.push_back(block_select(q.narrow(0, s, 1), cache.k[s].narrow(0, 0, lengths[i]),
                                   Documents::single(1, device),
                                   Documents::single(lengths[i], device), config, scale));
    }
    return at::cat(lists, 1);
  }
};

TEST_P(Decode, AttentionEqualsItsTwin) {
  const std::vector<int64_t> lengths{1, 2, 15, 16, 17, 64, 95, 96, 97, 127, 128, 129, 200};
  const SparseConfig config = small_blocks();
  for (const Sizes& h : {Sizes{1, 3, 64}, Sizes{3, 3, 64}, Sizes{16, 2, 128}, Sizes{5, 1, 128},
                         Sizes{8, 2, 64}, Sizes{9, 1, 64}, Sizes{17, 1, 64}, Sizes{2, 2, 24}}) {
    SCOPED_TRACE(::testing::Message() << h.group << " x " << h.num_kv << " x " << h.head_size);
    const KeyCache cache = cache_for(lengths, 203, h, config);
    const DecodeLengths at = lengths_of(lengths);
    const at::Tensor q = queries(at.count(), h);
    at::Tensor lists = decode_select(q, cache, at, config, h.scale());
    for (const at::Tensor& blocks : {at::Tensor(), lists}) {
      const at::Tensor o = decode_attention(q, cache, at, blocks, config, h.scale());
      const at::Tensor expected = decode_attention_twin(exact(q), exact(cache.k), exact(cache.v),
                                                        lengths, on_cpu(blocks), config, h.scale());
      EXPECT_TRUE(close(o, expected, tolerance(GetParam().dtype)));
      EXPECT_TRUE(bit_equal(o, decode_attention(q, cache, at, blocks, config, h.scale())));
    }
  }
}

// Large scores as well: the running softmax has to correct itself.
TEST_P(Decode, AttentionTakesScoresOfAnySize) {
  const std::vector<int64_t> lengths{700, 333};
  const Sizes h{4, 2, 64};
  const SparseConfig config = small_blocks(4096);
  const KeyCache cache = cache_for(lengths, 1000, h, config);
  const at::Tensor q = queries(2, h);
  for (const double scale : {1e-4, 1.0, 4.0}) {
    const at::Tensor o = decode_attention(q, cache, lengths_of(lengths), {}, config, scale);
    EXPECT_TRUE(close(
        o,
        decode_attention_twin(exact(q), exact(cache.k), exact(cache.v), lengths, {}, config, scale),
        tolerance(GetParam().dtype)))
        << scale;
  }
}

TEST_P(Decode, ResultsDoNotDependOnOtherSequences) {
  const std::vector<int64_t> lengths{77, 150, 199};
  const Sizes h{4, 2, 64};
  const SparseConfig config = small_blocks();
  const KeyCache cache = cache_for(lengths, 200, h, config);
  const at::Tensor q = queries(3, h);
  const DecodeLengths at = lengths_of(lengths);
  const at::Tensor lists = decode_select(q, cache, at, config, h.scale());
  const at::Tensor o = decode_attention(q, cache, at, lists, config, h.scale());
  for (int64_t s = 0; s < 3; ++s) {
    KeyCache alone = cache_for({0}, 200, h, config);
    write_keys(alone, 0, 0, cache.k[s].narrow(0, 0, lengths[s]),
               cache.v[s].narrow(0, 0, lengths[s]), config);
    const DecodeLengths of_one = lengths_of({lengths[s]});
    const at::Tensor query = q.narrow(0, s, 1);
    const at::Tensor list = decode_select(query, alone, of_one, config, h.scale());
    EXPECT_TRUE(bit_equal(list, lists.narrow(1, s, 1).contiguous())) << s;
    EXPECT_TRUE(bit_equal(decode_attention(query, alone, of_one, list, config, h.scale()),
                          o.narrow(0, s, 1)))
        << s;
  }
}

// Lists of the twin, of block_select, and of caches that were filled at once or token by token.
TEST_P(Decode, SelectionIsThatOfTheWholeOp) {
  const std::vector<int64_t> lengths{1, 111, 112, 113, 180, 300};
  const SparseConfig config = small_blocks();
  for (const Sizes& h : {Sizes{1, 2, 64}, Sizes{3, 3, 64}, Sizes{16, 2, 128}, Sizes{2, 1, 24}}) {
    SCOPED_TRACE(::testing::Message() << h.group << " x " << h.num_kv << " x " << h.head_size);
    const KeyCache cache = cache_for(lengths, 300, h, config);
    const DecodeLengths at = lengths_of(lengths);
    const at::Tensor q = queries(at.count(), h);
    const at::Tensor lists = decode_select(q, cache, at, config, h.scale());
    const at::Tensor whole = whole_lists(q, cache, lengths, config, h.scale());
    EXPECT_EQ(lists.ne(whole).any(2).sum().item<int64_t>(), 0);
    int64_t differ = 0;  // near-ties within rounding
    for (size_t i = 0; i < lengths.size(); ++i) {
      const auto s = static_cast<int64_t>(i);
      const at::Tensor twin =
          block_select_twin(exact(q.narrow(0, s, 1)), exact(cache.k[s].narrow(0, 0, lengths[i])),
                            Documents::single(1, at::kCPU), Documents::single(lengths[i], at::kCPU),
                            config, h.scale(), GetParam().dtype);
      differ += on_cpu(lists.narrow(1, s, 1)).ne(twin).any(2).sum().item<int64_t>();
    }
    EXPECT_LE(differ, GetParam().dtype == at::kBFloat16 ? 2 : 0);
  }
}

// With the released models' blocks: several tiles of compressed keys, shared out over thread
// blocks.
TEST_P(Decode, LongSequencesSelectAndAttendAsTheWholeOpsDo) {
  const std::vector<int64_t> lengths{6144, 8191, 8192, 20001};
  const SparseConfig config;
  const Sizes h{4, 2, 64};
  const KeyCache cache = cache_for(lengths, 20010, h, config);
  const DecodeLengths at = lengths_of(lengths);
  const at::Tensor q = queries(at.count(), h);
  const at::Tensor lists = decode_select(q, cache, at, config, h.scale());
  EXPECT_TRUE(bit_equal(lists, whole_lists(q, cache, lengths, config, h.scale())));
  const at::Tensor o = decode_attention(q, cache, at, lists, config, h.scale());
  for (size_t i = 0; i < lengths.size(); ++i) {
    const auto s = static_cast<int64_t>(i);
    const Documents one = Documents::single(1, device());
    const Documents keys = Documents::single(lengths[i], device());
    const auto kept = [&](const at::Tensor& x) { return x[s].narrow(0, 0, lengths[i]); };
    const at::Tensor query = q.narrow(0, s, 1), k = kept(cache.k), v = kept(cache.v);
    const at::Tensor expected =
        lengths[i] < config.dense_len
            ? std::get<0>(dense_attention_forward(query, k, v, one, keys, h.scale()))
            : std::get<0>(block_sparse_attention_forward(query, k, v,
                                                         lists.narrow(1, s, 1).contiguous(), one,
                                                         keys, config.block_size, h.scale()));
    EXPECT_TRUE(close(o.narrow(0, s, 1), expected, tolerance(GetParam().dtype))) << lengths[i];
  }
}

TEST_P(Decode, TokenByTokenEqualsAtOnce) {
  const SparseConfig config = small_blocks(32);
  for (const Sizes& h : {Sizes{2, 3, 64}, Sizes{16, 1, 128}, Sizes{17, 1, 64}}) {
    const int64_t T = 150, S = 2;
    const at::Tensor k = random({S, T, h.num_kv, h.head_size}), v = random(k.sizes());
    KeyCache once = cache_for({0, 0}, T, h, config), stepped = cache_for({0, 0}, T, h, config);
    std::vector<int64_t> lengths{3, 37};  // then a token at a time, and chunks for the other
    for (int64_t s = 0; s < S; ++s) {
      write_keys(stepped, s, 0, k[s].narrow(0, 0, lengths[s]), v[s].narrow(0, 0, lengths[s]),
                 config);
    }
    DecodeLengths at = lengths_of(lengths);
    for (; at.host[1] < T;) {
      at.add_one();
      const at::Tensor row = at.tokens().to(at::kLong).sub(1);
      const at::Tensor s = at::arange(S, row.options());
      append_keys(stepped, at, k.index({s, row}), v.index({s, row}), config);
    }
    EXPECT_EQ(at.tokens()[0].item<int>(), at.host[0]);
    EXPECT_EQ(at.on_device[2 * S].item<int>(), at.host[0] + at.host[1]);
    for (int64_t s = 0; s < S; ++s) {
      const int64_t n = at.host[s];
      for (int64_t begin = 0; begin < n; begin += 29) {
        const int64_t count = std::min<int64_t>(29, n - begin);
        write_keys(once, s, begin, k[s].narrow(0, begin, count), v[s].narrow(0, begin, count),
                   config);
      }
      EXPECT_TRUE(bit_equal(once.k[s].narrow(0, 0, n), stepped.k[s].narrow(0, 0, n)));
      EXPECT_TRUE(bit_equal(once.v[s].narrow(0, 0, n), stepped.v[s].narrow(0, 0, n)));
    }
    for (const auto& part :
         {&CompressedKeys::fine, &CompressedKeys::coarse, &CompressedKeys::tiles}) {
      const at::Tensor &a = once.compressed.*part, &b = stepped.compressed.*part;
      ASSERT_EQ(a.defined(), b.defined());
      if (a.defined()) {
        EXPECT_TRUE(bit_equal(a, b));
      }
    }
  }
}

TEST_P(Decode, LightningStepsItsStatesInPlace) {
  for (const auto& [NH, HS] :
       std::vector<std::pair<int64_t, int64_t>>{{3, 64}, {5, 128}, {2, 20}}) {
    const int64_t S = 4;
    const at::Tensor q = random({S, NH, HS}), k = random(q.sizes()), v = random(q.sizes());
    const at::Tensor before = random_wide({S, NH, HS, HS}), slopes = lightning_slopes(NH);
    at::Tensor state = before.clone();
    const void* const memory = state.data_ptr();
    const at::Tensor o = lightning_decode(q, k, v, slopes, 0.3, state);
    EXPECT_EQ(state.data_ptr(), memory);
    const auto [expected, next] = lightning_forward_twin(
        exact(q), exact(k), exact(v), slopes, Documents::from_starts({0, 1, 2, 3}, S, at::kCPU),
        0.3, exact(before));
    EXPECT_TRUE(close(o, expected, tolerance(GetParam().dtype)));
    EXPECT_TRUE(close(state, next, tolerance(before.scalar_type())));
  }
}

TEST_P(Decode, CachesTakeTheBytesThatWereSaid) {
  const SparseConfig config = small_blocks();
  for (const int64_t capacity : {1, 95, 96, 1000}) {
    const KeyCacheShape shape{.num_sequences = 3,
                              .capacity = capacity,
                              .num_heads = 6,
                              .num_kv_heads = 2,
                              .head_size = 64,
                              .dtype = GetParam().dtype,
                              .device = device(),
                              .sparse = &config};
    const KeyCache cache = make_key_cache(shape);
    EXPECT_EQ(cache.compressed.defined(), capacity >= 96);
    size_t bytes = cache.k.nbytes() + cache.v.nbytes();
    for (const at::Tensor& x :
         {cache.compressed.fine, cache.compressed.coarse, cache.compressed.tiles}) {
      if (x.defined()) bytes += x.nbytes();
    }
    EXPECT_EQ(static_cast<int64_t>(bytes), key_cache_bytes(shape)) << capacity;
  }
}

TEST_P(Decode, RefusesWhatDoesNotFit) {
  const SparseConfig config = small_blocks();
  const Sizes h{2, 2, 64};
  KeyCache cache = cache_for({5, 8}, 8, h, config);
  const at::Tensor k = random({2, 2, 64});
  EXPECT_THROW(append_keys(cache, lengths_of({6, 9}), k, k, config), c10::Error);
  EXPECT_THROW(write_keys(cache, 0, 7, k, k, config), c10::Error);
  EXPECT_THROW(decode_attention(queries(1, h), cache, lengths_of({5, 8}), {}, config, 1),
               c10::Error);
}

INSTANTIATE_TEST_SUITE_P(Places, Decode, all_places(), place_name);

}  // namespace
}  // namespace sala::test
