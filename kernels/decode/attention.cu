// Attention of one token of each of many sequences: bound by reading the keys and values once.
//
// A block of threads takes one KV head's G query heads and a part of the sequence's keys
// (launch.h); its four warps take tiles of 16 keys in turn, with a softmax each that is corrected
// as its largest score grows. The 16 rows of the products are the query heads, those beyond G zero.
// Keys and values go from memory to registers straight as operands: since a product's sum may run
// in any order, 16 neighbouring bytes of a key, whatever columns the instruction calls them, can be
// two steps' operands of one lane, and since its columns may come in any order, a lane that holds
// eight neighbouring columns of four values holds the operands of eight products. A second kernel
// adds up the parts of a head, in their order.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/decode/launch.h"
#include "kernels/gpu/ampere.cuh"
#include "kernels/gpu/exp2.cuh"

namespace sala {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr int kTileKeys = 16;

__host__ __device__ __forceinline__ int parts_of(int n, int size) { return (n + size - 1) / size; }

// How the keys of a sequence are split (launch.h).
struct Splits {
  int count;          // room for parts
  int keys, entries;  // of a part: keys of a sequence that looks at all, entries of a list
};

Splits splits_of(const DecodeAttention& x) {
  return {decode_num_splits(x), static_cast<int>(decode_split_keys(x.capacity)),
          decode_split_entries(x.block_size)};
}

// What a sequence looks at.
struct Span {
  int num_keys;
  bool listed;
  int parts;

  __device__ __forceinline__ Span(const DecodeAttention& x, const Splits& splits, int sequence) {
    num_keys = min(x.tokens[sequence], x.capacity);
    listed = x.lists != nullptr && num_keys >= x.dense_len;
    parts = listed ? parts_of(x.list_size, splits.entries) : parts_of(num_keys, splits.keys);
  }
};

// 16 bytes as four words.
__device__ __forceinline__ uint4 load_words(const __nv_bfloat16* from) {
  return *reinterpret_cast<const uint4*>(from);
}
__device__ __forceinline__ uint32_t word(const uint4& words, int i) {
  return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}
// Element j of both, the first one in the lower half.
__device__ __forceinline__ uint32_t pair_of(const uint4& a, const uint4& b, int j) {
  return __byte_perm(word(a, j / 2), word(b, j / 2), j % 2 == 0 ? 0x5410 : 0x7632);
}

// A warp's running softmax: rows lane / 4 and lane / 4 + 8 of 16 query heads. Column n of product j
// of half h of o is column 64 h + 8 n + j of the head.
template <int HS>
struct Warp {
  static constexpr int kPieces = HS / 32;  // 16-byte loads of a lane for one key
  static constexpr int kHalves = HS / 64;
  uint4 query[2][kPieces];
  float o[HS / 8][4];
  float top[2], sum[2];

  __device__ __forceinline__ void begin(const __nv_bfloat16* q, int group, int lane) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = lane / 4 + 8 * r;
#pragma unroll
      for (int c = 0; c < kPieces; ++c) {
        query[r][c] = make_uint4(0, 0, 0, 0);
        if (row < group) query[r][c] = load_words(q + row * HS + 32 * c + 8 * (lane % 4));
      }
      top[r] = -INFINITY;
      sum[r] = 0;
    }
#pragma unroll
    for (int i = 0; i < HS / 8; ++i) o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0;
  }

  // Keys first .. first + 15, as far as num_keys; at least one. Rows of k and v lie `step` apart.
  __device__ __forceinline__ void add(const __nv_bfloat16* k, const __nv_bfloat16* v, int64_t step,
                                      int first, int num_keys, float factor, int lane) {
    const int g = lane / 4, t = lane % 4;
    uint4 keys[2][kPieces], values[4][kHalves];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const __nv_bfloat16* row = k + min(first + 8 * i + g, num_keys - 1) * step + 8 * t;
#pragma unroll
      for (int c = 0; c < kPieces; ++c) keys[i][c] = load_words(row + 32 * c);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int key = first + 2 * t + j % 2 + 8 * (j / 2);
      const __nv_bfloat16* row = v + min(key, num_keys - 1) * step + 8 * g;
#pragma unroll
      for (int h = 0; h < kHalves; ++h) values[j][h] = load_words(row + 64 * h);
    }

    float score[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      score[i][0] = score[i][1] = score[i][2] = score[i][3] = 0;
#pragma unroll
      for (int c = 0; c < kPieces; ++c) {
        const uint4 &low = query[0][c], &high = query[1][c], &key = keys[i][c];
        const uint32_t left[4] = {low.x, high.x, low.y, high.y};
        const uint32_t right[4] = {low.z, high.z, low.w, high.w};
        ampere::multiply(score[i], left, key.x, key.y);
        ampere::multiply(score[i], right, key.z, key.w);
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const bool seen = first + 8 * i + 2 * t + e % 2 < num_keys;
        score[i][e] = seen ? score[i][e] * factor : -INFINITY;
      }
    }
    weigh(score);
    const uint32_t weights[4] = {
        tiles::pack(score[0][0], score[0][1]), tiles::pack(score[0][2], score[0][3]),
        tiles::pack(score[1][0], score[1][1]), tiles::pack(score[1][2], score[1][3])};
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        ampere::multiply(o[8 * h + j], weights, pair_of(values[0][h], values[1][h], j),
                         pair_of(values[2][h], values[3][h], j));
      }
    }
  }

  // Scores become weights relative to the largest score so far; what is there already follows.
  __device__ __forceinline__ void weigh(float (&score)[2][4]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float largest = fmaxf(fmaxf(score[0][2 * r], score[0][2 * r + 1]),
                            fmaxf(score[1][2 * r], score[1][2 * r + 1]));
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
      const float next = fmaxf(top[r], largest);
      const float shrink = exp2f(top[r] - next);
      top[r] = next;
      sum[r] *= shrink;
#pragma unroll
      for (int i = 0; i < HS / 8; ++i) {
        o[i][2 * r] *= shrink;
        o[i][2 * r + 1] *= shrink;
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; ++e) {
          score[i][e] = exp2f(score[i][e] - next);
          sum[r] += score[i][e];
        }
      }
    }
  }
};

// What the warps of a block leave for its merge.
template <int HS>
struct Board {
  float o[kWarps][kDecodeMaxGroup][HS];
  float top[kWarps][kDecodeMaxGroup], sum[kWarps][kDecodeMaxGroup];

  __device__ __forceinline__ void put(const Warp<HS>& mine, int group, int warp, int lane) {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float total = mine.sum[r];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      if (t == 0) {
        top[warp][g + 8 * r] = mine.top[r];
        sum[warp][g + 8 * r] = total;
      }
      if (g + 8 * r >= group) continue;
#pragma unroll
      for (int i = 0; i < HS / 8; ++i) {
        const int column = 64 * (i / 8) + 16 * t + i % 8;  // of products' column 2 t
        o[warp][g + 8 * r][column] = mine.o[i][2 * r];
        o[warp][g + 8 * r][column + 8] = mine.o[i][2 * r + 1];
      }
    }
  }
};

template <int HS>
__global__ void __launch_bounds__(kThreads)
    split_kernel(const __grid_constant__ DecodeAttention x, const Splits splits) {
  __shared__ Board<HS> board;
  const int part = blockIdx.x, head = blockIdx.y, sequence = blockIdx.z;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Span span(x, splits, sequence);
  if (part >= span.parts) return;
  const int NH = x.num_kv_heads * x.group;
  using T = __nv_bfloat16;
  const int64_t base = (static_cast<int64_t>(sequence) * x.capacity * x.num_kv_heads + head) * HS;
  const T *k = static_cast<const T*>(x.k) + base, *v = static_cast<const T*>(x.v) + base;
  const int64_t step = static_cast<int64_t>(x.num_kv_heads) * HS;
  const int64_t first_row = static_cast<int64_t>(sequence) * NH + head * x.group;
  const float factor = x.scale * kLog2E;

  Warp<HS> mine;
  mine.begin(static_cast<const T*>(x.q) + first_row * HS, x.group, lane);
  if (span.listed) {
    const int entries = splits.entries, per_block = x.block_size / kTileKeys;
    const int* list =
        x.lists + (static_cast<int64_t>(head) * x.num_sequences + sequence) * x.list_size;
    const int end = min(x.list_size, (part + 1) * entries) * per_block;
    for (int tile = part * entries * per_block + warp; tile < end; tile += kWarps) {
      const int block = list[tile / per_block];
      const int first = block * x.block_size + tile % per_block * kTileKeys;
      if (block < 0 || first >= span.num_keys) continue;
      mine.add(k, v, step, first, span.num_keys, factor, lane);
    }
  } else {
    const int end = min(span.num_keys, (part + 1) * splits.keys);
    for (int first = part * splits.keys + warp * kTileKeys; first < end;
         first += kWarps * kTileKeys) {
      mine.add(k, v, step, first, span.num_keys, factor, lane);
    }
  }
  board.put(mine, x.group, warp, lane);
  __syncthreads();

  for (int i = threadIdx.x; i < x.group * HS; i += kThreads) {
    const int row = i / HS, column = i % HS;
    float top = -INFINITY, sum = 0, o = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) top = fmaxf(top, board.top[w][row]);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (board.top[w][row] == -INFINITY) continue;  // had no keys
      const float weight = exp2f(board.top[w][row] - top);
      sum += weight * board.sum[w][row];
      o += weight * board.o[w][row][column];
    }
    const int64_t place = (first_row + row) * splits.count + part;
    x.part_o[place * HS + column] = o;
    if (column == 0) {
      x.part_weight[2 * place] = top;
      x.part_weight[2 * place + 1] = sum;
    }
  }
}

constexpr int kTeams = 4;  // that share out the parts of a head

template <int HS>
__global__ void __launch_bounds__(kTeams* HS)
    merge_kernel(const __grid_constant__ DecodeAttention x, const Splits splits) {
  __shared__ float os[kTeams][HS], tops[kTeams], sums[kTeams];
  const int row = blockIdx.x, sequence = blockIdx.y, column = threadIdx.x, team = threadIdx.y;
  const Span span(x, splits, sequence);
  const int64_t at = static_cast<int64_t>(sequence) * (x.num_kv_heads * x.group) + row;
  const float* part_o = x.part_o + at * splits.count * HS;
  const float* part_weight = x.part_weight + at * splits.count * 2;
  float top = -INFINITY, sum = 0, o = 0;
  for (int i = team; i < span.parts; i += kTeams) {
    const float part_top = part_weight[2 * i];
    if (part_top == -INFINITY) continue;  // had no keys
    const float next = fmaxf(top, part_top);
    const float shrink = exp2f(top - next), weight = exp2f(part_top - next);
    top = next;
    sum = sum * shrink + weight * part_weight[2 * i + 1];
    o = o * shrink + weight * part_o[static_cast<int64_t>(i) * HS + column];
  }
  os[team][column] = o;
  if (column == 0) {
    tops[team] = top;
    sums[team] = sum;
  }
  __syncthreads();
  if (team > 0) return;
  float largest = -INFINITY, total = 0, value = 0;
#pragma unroll
  for (int i = 0; i < kTeams; ++i) largest = fmaxf(largest, tops[i]);
#pragma unroll
  for (int i = 0; i < kTeams; ++i) {
    if (tops[i] == -INFINITY) continue;
    const float weight = exp2f(tops[i] - largest);
    total += weight * sums[i];
    value += weight * os[i][column];
  }
  static_cast<__nv_bfloat16*>(x.o)[at * HS + column] = __float2bfloat16_rn(value / total);
}

template <int HS>
int launch_for_size(const DecodeAttention& x, cudaStream_t stream) {
  const Splits splits = splits_of(x);
  const dim3 grid(splits.count, x.num_kv_heads, x.num_sequences);
  split_kernel<HS><<<grid, kThreads, 0, stream>>>(x, splits);
  if (const int error = cudaGetLastError()) return error;
  const dim3 rows(x.num_kv_heads * x.group, x.num_sequences);
  merge_kernel<HS><<<rows, dim3(HS, kTeams), 0, stream>>>(x, splits);
  return cudaGetLastError();
}

}  // namespace

int decode_num_splits(const DecodeAttention& x) {
  const int split_keys = static_cast<int>(decode_split_keys(x.capacity));
  if (x.lists == nullptr) return parts_of(x.capacity, split_keys);
  const int dense = parts_of(x.dense_len < x.capacity ? x.dense_len : x.capacity, split_keys);
  const int listed = parts_of(x.list_size, decode_split_entries(x.block_size));
  return dense > listed ? dense : listed;
}

int launch_decode_attention(const DecodeAttention& x, int64_t head_size, CUstream_st* stream) {
  if (x.group < 1 || x.group > kDecodeMaxGroup || x.block_size % kTileKeys != 0) {
    return cudaErrorInvalidValue;
  }
  if (head_size == 64) return launch_for_size<64>(x, stream);
  if (head_size == 128) return launch_for_size<128>(x, stream);
  return cudaErrorInvalidValue;
}

}  // namespace sala
