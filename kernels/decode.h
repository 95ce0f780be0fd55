// The tensor door of the decode step: one new token for each of S sequences whose keys, values and
// states are kept. Beside ops.h, whose letters and rules hold here; twins in
// kernels/twins/decode.h. With bf16 on CUDA, head size 64 or 128 and at most 16 query heads per KV
// head these are kernels of our own that take the lengths from the device (selection on compute
// capability 9.0 only: steps_on_device). Elsewhere compositions of LibTorch ops, a sequence at a
// time.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "kernels/ops.h"

namespace sala {

// Tokens that the caches hold of each sequence, on the host and on the device.
struct DecodeLengths {
  std::vector<int64_t> host;  // (S)
  at::Tensor on_device;  // (2 S + 1) int32: the lengths, then where each of the sequences would
                         // begin if they were packed, and the end of the last
  at::Tensor one_more;   // what a step adds to it

  DecodeLengths(int64_t num_sequences, at::Device device);
  int64_t count() const { return static_cast<int64_t>(host.size()); }
  at::Tensor tokens() const { return on_device.narrow(0, 0, count()); }
  void set(const std::vector<int64_t>& lengths);
  void add_one();          // to all: queued on the device
  void add_one_on_host();  // where a replayed graph has done the device's part
};

// Compressed keys of selection, kept up to date: windows of kernel_size tokens, and four times as
// wide ones, that have ended. Undefined for a layer that never selects.
struct CompressedKeys {
  at::Tensor fine, coarse;  // (S, NKV, windows, HS), or as the selection kernels read them:
  at::Tensor tiles;         // (S, NKV, tiles of windows, then of coarse ones; 128, HS)
  at::Tensor places;  // int32, device: 0 .. S, then the first tile of windows and of coarse ones of
                      // each sequence, and the end
  bool defined() const { return fine.defined() || tiles.defined(); }
};

// What one softmax layer keeps.
struct KeyCache {
  at::Tensor k, v;  // (S, capacity, NKV, HS)
  CompressedKeys compressed;
  int64_t capacity() const { return k.size(1); }
};

struct KeyCacheShape {
  int64_t num_sequences = 0, capacity = 0, num_heads = 0, num_kv_heads = 0, head_size = 0;
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  const SparseConfig* sparse = nullptr;  // null: the layer never selects
};
KeyCache make_key_cache(const KeyCacheShape& shape);
// Whether all that a step does with such a cache is done by kernels that take the lengths from the
// device: then the step waits for nothing, and a captured one may be replayed.
bool steps_on_device(const KeyCacheShape& shape);
// What make_key_cache takes; at most 2 % more than that for short capacities.
int64_t key_cache_bytes(const KeyCacheShape& shape);

// Tokens [first, first + n) of sequence s: k, v (n, NKV, HS). All before are there already.
void write_keys(KeyCache& cache, int64_t s, int64_t first, const at::Tensor& k, const at::Tensor& v,
                const SparseConfig& config);
// One token of each: k, v (S, NKV, HS) go to the last place of lengths, which counts them.
void append_keys(KeyCache& cache, const DecodeLengths& lengths, const at::Tensor& k,
                 const at::Tensor& v, const SparseConfig& config);

// block_select for the last token of each sequence: q (S, NH, HS) -> (NKV, S, K) int32. On Hopper
// in bf16 the same bits as block_select's.
at::Tensor decode_select(const at::Tensor& q, const KeyCache& cache, const DecodeLengths& lengths,
                         const SparseConfig& config, double scale);

// Attention of the last token of each sequence: q (S, NH, HS) -> o (S, NH, HS). Sequences of
// config.dense_len tokens and more look at the blocks that they listed, all others, and everybody
// where `blocks` is undefined, at all of their tokens. The kernel splits the keys and adds the
// parts up in a fixed order: the same bits at every call, whatever the other sequences are.
at::Tensor decode_attention(const at::Tensor& q, const KeyCache& cache,
                            const DecodeLengths& lengths, const at::Tensor& blocks,
                            const SparseConfig& config, double scale);

// lightning_forward for one token of each sequence: q, k, v (S, NH, HS); `state` (S, NH, HS, HS)
// fp32/fp64 is updated where it lies. Returns o (S, NH, HS).
at::Tensor lightning_decode(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& slopes, double scale, at::Tensor& state);

}  // namespace sala
