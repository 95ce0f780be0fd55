// sala-bench: softmax attention of the decode step, one token for each document, on keys that are
// kept: over all of them, or selection and then the listed ones.
#include <algorithm>
#include <cmath>

#include "kernels/decode.h"
#include "trainer/bench/op.h"

namespace sala {

namespace {

SparseConfig config_of() {
  SparseConfig config;
  config.dense_len = 1;  // every length selects
  return config;
}

double key_bytes(const BenchShape& s) {
  return double(s.num_kv_heads() * s.head_size) * s.element_bytes();
}
// Keys and values are read.
double dense_step_bytes(const BenchShape& s) { return 2 * double(s.tokens) * key_bytes(s); }
// Of a list's length at most.
double listed_step_bytes(const BenchShape& s) {
  const SparseConfig c;
  const double listed = double(c.blocks_per_token() * c.block_size * s.documents);
  return 2 * std::min(listed, double(s.tokens)) * key_bytes(s);
}
// Both kinds of compressed keys are read, lists written.
double select_step_bytes(const BenchShape& s) {
  const SparseConfig c;
  const double windows = 1 / double(c.kernel_stride) + 1 / double(c.block_size);
  return double(s.tokens) * windows * key_bytes(s) +
         double(s.documents * s.num_kv_heads() * c.blocks_per_token()) * double(sizeof(int32_t));
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
                                   .num_kv_heads = s.num_kv_heads(),
                                   .head_size = s.head_size,
                                   .dtype = s.dtype,
                                   .device = s.device,
                                   .sparse = &config});
  for (int64_t n = 0; n < S; ++n) {
    write_keys(cache, n, 0, s.normal({length, s.num_kv_heads(), s.head_size}),
               s.normal({length, s.num_kv_heads(), s.head_size}), config);
  }
  DecodeLengths lengths(S, s.device);
  lengths.set(std::vector<int64_t>(S, length));
  return {cache, lengths, s.normal({S, s.heads, s.head_size}),
          1.0 / std::sqrt(double(s.head_size))};
}

BenchRun dense_step_run(const BenchShape& s) {
  const Kept x = kept(s);
  return [=]() -> BenchTensors {
    return {decode_attention(x.q, x.cache, x.lengths, {}, config_of(), x.scale)};
  };
}

BenchRun listed_step_run(const BenchShape& s) {
  const Kept x = kept(s);
  const at::Tensor lists = decode_select(x.q, x.cache, x.lengths, config_of(), x.scale);
  return [=]() -> BenchTensors {
    return {decode_attention(x.q, x.cache, x.lengths, lists, config_of(), x.scale)};
  };
}

BenchRun select_step_run(const BenchShape& s) {
  const Kept x = kept(s);
  return [=]() -> BenchTensors {
    return {decode_select(x.q, x.cache, x.lengths, config_of(), x.scale)};
  };
}

}  // namespace

std::vector<BenchOp> decode_bench_ops() {
  const BenchSweep by_heads = BenchSweep::kHeads;
  return {
      {"decode_dense", "step", by_heads, kv_shape_text, dense_step_bytes, {}, dense_step_run},
      {"decode_listed", "step", by_heads, kv_shape_text, listed_step_bytes, {}, listed_step_run},
      {"decode_select", "step", by_heads, kv_shape_text, select_step_bytes, {}, select_step_run},
  };
}

}  // namespace sala
