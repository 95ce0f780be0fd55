// sala-bench: softmax attention of the decode step, one token for each document, on keys that are
// kept: over all of them, or selection and then the listed ones.
#include <algorithm>
#include <cmath>

#include "kernels/decode.h"
#include "trainer/bench/op.h"

namespace sala {

namespace {

int64_t kv_heads(const BenchShape& s) {
  int64_t group = std::min<int64_t>(s.heads, 16);
  while (s.heads % group != 0) --group;
  return s.heads / group;
}

SparseConfig config_of() {
  SparseConfig config;
  config.dense_len = 1;  // every length selects
  return config;
}

std::string cache_shape_text(const BenchShape& s) {
  return shape_text({s.tokens, s.heads}) + "/" + shape_text({kv_heads(s), s.head_size});
}

double key_bytes(const BenchShape& s) {
  return double(kv_heads(s) * s.head_size) * s.element_bytes();
}
// Keys and values are read.
double dense_bytes(const BenchShape& s) { return 2 * double(s.tokens) * key_bytes(s); }
// Of a list's length at most.
double listed_bytes(const BenchShape& s) {
  const SparseConfig c;
  const double listed = double(c.blocks_per_token() * c.block_size * s.documents);
  return 2 * std::min(listed, double(s.tokens)) * key_bytes(s);
}
// Both kinds of compressed keys are read, lists written.
double select_bytes(const BenchShape& s) {
  const SparseConfig c;
  const double windows = 1 / double(c.kernel_stride) + 1 / double(c.block_size);
  return double(s.tokens) * windows * key_bytes(s) +
         double(s.documents * kv_heads(s) * c.blocks_per_token()) * double(sizeof(int32_t));
}

struct Kept {
  KeyCache cache;
  DecodeLengths lengths;
  at::Tensor q;
  double scale;
};

Kept kept(const BenchShape& s) {
  const int64_t S = s.documents, length = s.tokens / S;
  const SparseConfig config = config_of();
  KeyCache cache = make_key_cache({.num_sequences = S,
                                   .capacity = length,
                                   .num_heads = s.heads,
                                   .num_kv_heads = kv_heads(s),
                                   .head_size = s.head_size,
                                   .dtype = s.dtype,
                                   .device = s.device,
                                   .sparse = &config});
  for (int64_t n = 0; n < S; ++n) {
    write_keys(cache, n, 0, s.normal({length, kv_heads(s), s.head_size}),
               s.normal({length, kv_heads(s), s.head_size}), config);
  }
  DecodeLengths lengths(S, s.device);
  lengths.set(std::vector<int64_t>(S, length));
  return {cache, lengths, s.normal({S, s.heads, s.head_size}),
          1.0 / std::sqrt(double(s.head_size))};
}

BenchRun dense_run(const BenchShape& s) {
  const Kept x = kept(s);
  return [=]() -> BenchTensors {
    return {decode_attention(x.q, x.cache, x.lengths, {}, config_of(), x.scale)};
  };
}

BenchRun listed_run(const BenchShape& s) {
  const Kept x = kept(s);
  const at::Tensor lists = decode_select(x.q, x.cache, x.lengths, config_of(), x.scale);
  return [=]() -> BenchTensors {
    return {decode_attention(x.q, x.cache, x.lengths, lists, config_of(), x.scale)};
  };
}

BenchRun select_run(const BenchShape& s) {
  const Kept x = kept(s);
  return [=]() -> BenchTensors {
    return {decode_select(x.q, x.cache, x.lengths, config_of(), x.scale)};
  };
}

}  // namespace

std::vector<BenchOp> decode_bench_ops() {
  const BenchSweep by_heads = BenchSweep::kHeads;
  return {
      {"decode_dense", "step", by_heads, cache_shape_text, dense_bytes, {}, dense_run},
      {"decode_listed", "step", by_heads, cache_shape_text, listed_bytes, {}, listed_run},
      {"decode_select", "step", by_heads, cache_shape_text, select_bytes, {}, select_run},
  };
}

}  // namespace sala
