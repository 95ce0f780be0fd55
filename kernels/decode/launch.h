// Raw-pointer launchers of the kernels of the decode step (decode.h). No torch here: nvcc reads it.
// Everything is ordered on `stream` and nothing blocks; results are cudaError_t. Lengths are read
// on the device, grids are sized for the caches' capacity: a captured launch is good for any
// lengths within it.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace sala {

constexpr int kDecodeMaxGroup = 16;  // query heads of a KV head

// ---------------------------------------------------------------- attention

// Keys of a thread block where a sequence looks at all of its keys: enough for the merge of the
// parts to cost little, few enough for one sequence to fill the chip. A function of the capacity
// alone, so that no result depends on the other sequences.
constexpr int64_t decode_split_keys(int64_t capacity) {
  const int64_t least = capacity <= 4096 ? 128 : 256, keys = (capacity + 255) / 256;
  return keys <= least ? least : (keys + 63) / 64 * 64;
}
// And where it looks at a list of blocks: about 128 keys, whole blocks.
constexpr int decode_split_entries(int block_size) {
  return block_size >= 128 ? 1 : 128 / block_size;
}

struct DecodeAttention {
  const void *q, *k, *v;                   // q (S, NH, HS); k, v (S, capacity, NKV, HS); bf16
  const int* tokens;                       // (S)
  const int* lists;                        // (NKV, S, K) blocks; null: all keys
  int num_sequences, num_kv_heads, group;  // group: NH / NKV <= kDecodeMaxGroup
  int capacity;                            // tokens
  int list_size, block_size;               // block_size: a multiple of 16
  int dense_len;  // sequences of fewer tokens look at all keys even where there are lists
  float scale;    // > 0
  void* o;        // (S, NH, HS) bf16
  // Room: decode_num_splits parts of each (sequence, head).
  float* part_o;       // (S, NH, splits, HS)
  float* part_weight;  // (S, NH, splits, 2) largest score (times log2 e), sum of weights
};

int decode_num_splits(const DecodeAttention& x);
// HS 64 or 128; compute capability 8.0 and later.
int launch_decode_attention(const DecodeAttention& x, int64_t head_size, CUstream_st* stream);

// ---------------------------------------------------------------- keys

struct DecodeAppend {
  const void *k, *v;        // (S, NKV, HS) bf16
  void *k_cache, *v_cache;  // (S, capacity, NKV, HS)
  const int* tokens;        // (S) the new one counted
  int num_sequences, num_kv_heads, capacity;
  // Compressed keys: (S, NKV, fine_tiles + coarse_tiles, 128, HS) in the layout of
  // kernels/selection/compressed.cuh; null: none are kept.
  void* tiles;
  int fine_tiles, coarse_tiles;
  int stride;  // tokens from one window to the next
};
int launch_decode_append(const DecodeAppend& x, int64_t head_size, CUstream_st* stream);

}  // namespace sala
