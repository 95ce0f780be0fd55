// Rows in registers, for kernels that read each element once and write each result once.
//
// A team of 32 to 256 threads holds one row of C elements as 2 to 4 chunks of 16 bytes a thread;
// neighbouring threads hold neighbouring chunks, so every load and store of a warp is one run of
// memory. Blocks have 256 threads, as many teams as fit, and stay on the chip: each strides over
// the rows, with the weight, and in a backward kernel its gradient, in registers all the way.
// Where C or an address does not allow 16-byte accesses the same chunks are moved element by
// element. Sums run in a fixed order: lanes by butterfly, warps in turn.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <initializer_list>
#include <type_traits>

#include "kernels/rows/launch.h"

namespace sala {

constexpr int kRowThreads = 256;
constexpr int kRowWarps = kRowThreads / 32;
constexpr int kMaxBlocksPerSm = 8;    // of 2048 threads
constexpr int kMaxPartialsPerSm = 4;  // blocks of a kernel that leaves partial sums
constexpr unsigned kAllLanes = 0xffffffffu;

// Blocks per SM that the registers must allow, so that enough loads are under way.
template <int kChunks, bool kAligned>
constexpr int kBlocksForward = !kAligned ? 1 : 6 - kChunks;
template <int kChunks, bool kAligned>
constexpr int kBlocksBackward = !kAligned ? 1 : 5 - kChunks;

template <typename T>
constexpr int kWidth = 16 / static_cast<int>(sizeof(T));  // elements of a chunk

// ---------------------------------------------------------------- 16 bytes of a row

template <typename T>
struct alignas(16) Chunk {
  uint32_t words[4];
};

template <typename T>
struct Values {
  float v[kWidth<T>];
};

__device__ inline Values<float> widen(const Chunk<float>& chunk) {
  Values<float> out;
#pragma unroll
  for (int i = 0; i < 4; ++i) out.v[i] = __uint_as_float(chunk.words[i]);
  return out;
}

__device__ inline Values<__nv_bfloat16> widen(const Chunk<__nv_bfloat16>& chunk) {
  Values<__nv_bfloat16> out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out.v[2 * i] = __uint_as_float(chunk.words[i] << 16);
    out.v[2 * i + 1] = __uint_as_float(chunk.words[i] & 0xffff0000u);
  }
  return out;
}

__device__ inline Chunk<float> round_to_type(const Values<float>& values) {
  Chunk<float> out;
#pragma unroll
  for (int i = 0; i < 4; ++i) out.words[i] = __float_as_uint(values.v[i]);
  return out;
}

__device__ inline Chunk<__nv_bfloat16> round_to_type(const Values<__nv_bfloat16>& values) {
  Chunk<__nv_bfloat16> out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __nv_bfloat162_raw pair = __floats2bfloat162_rn(values.v[2 * i], values.v[2 * i + 1]);
    out.words[i] = static_cast<uint32_t>(pair.x) | (static_cast<uint32_t>(pair.y) << 16);
  }
  return out;
}

template <typename T>
__device__ Values<T> rounded(const Values<T>& values) {
  return widen(round_to_type(values));
}

template <typename T>
__device__ Chunk<T> chunk_of(float value) {
  Values<T> values;
#pragma unroll
  for (int i = 0; i < kWidth<T>; ++i) values.v[i] = value;
  return round_to_type(values);
}

// The unsigned integer with an element's bits.
template <typename T>
using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;

// Elements column .. column + width of `row`; those at `end` and beyond are zero. kAligned: the
// address is a multiple of 16 bytes and the whole chunk lies on one side of `end`.
template <bool kAligned, typename T>
__device__ Chunk<T> load_chunk(const T* row, int column, int end) {
  Chunk<T> chunk{};
  if constexpr (kAligned) {
    if (column < end) {
      *reinterpret_cast<uint4*>(chunk.words) = *reinterpret_cast<const uint4*>(row + column);
    }
  } else {
    const auto* bits = reinterpret_cast<const Bits<T>*>(row);
#pragma unroll
    for (int i = 0; i < kWidth<T>; ++i) {
      constexpr int kPerWord = 4 / sizeof(T);
      if (column + i >= end) continue;
      chunk.words[i / kPerWord] |= static_cast<uint32_t>(bits[column + i])
                                   << (i % kPerWord * 8 * static_cast<int>(sizeof(T)));
    }
  }
  return chunk;
}

template <bool kAligned, typename T>
__device__ void store_chunk(const Chunk<T>& chunk, T* row, int column, int end) {
  if constexpr (kAligned) {
    if (column < end) {
      *reinterpret_cast<uint4*>(row + column) = *reinterpret_cast<const uint4*>(chunk.words);
    }
  } else {
    auto* bits = reinterpret_cast<Bits<T>*>(row);
#pragma unroll
    for (int i = 0; i < kWidth<T>; ++i) {
      constexpr int kPerWord = 4 / sizeof(T);
      if (column + i >= end) continue;
      bits[column + i] = static_cast<Bits<T>>(chunk.words[i / kPerWord] >>
                                              (i % kPerWord * 8 * static_cast<int>(sizeof(T))));
    }
  }
}

// cast(cast(x * rstd) * weight), as the norms round.
template <typename T>
__device__ Values<T> normalised(Values<T> x, float rstd, const Chunk<T>& weight) {
  const Values<T> w = widen(weight);
#pragma unroll
  for (int j = 0; j < kWidth<T>; ++j) x.v[j] *= rstd;
  x = rounded(x);
#pragma unroll
  for (int j = 0; j < kWidth<T>; ++j) x.v[j] *= w.v[j];
  return rounded(x);
}

__device__ inline float sigmoid(float z) { return __fdividef(1.0f, 1.0f + __expf(-z)); }

// ---------------------------------------------------------------- teams

struct RowTeam {
  int size;            // threads of a team, 32 .. 256
  int rows_per_block;  // teams of a block
  int thread;          // within the team
  int row;             // of the team within the block

  __device__ explicit RowTeam(int team_size)
      : size(team_size),
        rows_per_block(kRowThreads / team_size),
        thread(static_cast<int>(threadIdx.x) % team_size),
        row(static_cast<int>(threadIdx.x) / team_size) {}

  template <typename T>
  __device__ int column(int chunk) const {
    return (thread + chunk * size) * kWidth<T>;
  }
  __device__ int64_t first_row() const { return static_cast<int64_t>(blockIdx.x) * rows_per_block; }
  __device__ int64_t stride() const { return static_cast<int64_t>(gridDim.x) * rows_per_block; }
};

// The sum over a team's threads, the same in all. Every thread of the block calls it; calls in
// turn take the two halves of `scratch` in turn, which makes one barrier enough.
__device__ inline float team_sum(float value, const RowTeam& team, float (&scratch)[kRowWarps]) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  if (team.size == 32) return value;
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  const int num_warps = team.size / 32;
  float sum = 0;
  for (int i = 0; i < num_warps; ++i) sum += scratch[team.row * num_warps + i];
  return sum;
}

// The chunks of a row that this thread holds.
template <bool kAligned, typename T, int kChunks>
__device__ void load_row(Chunk<T> (&chunks)[kChunks], const void* row, const RowTeam& team,
                         int end) {
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    chunks[i] = load_chunk<kAligned>(static_cast<const T*>(row), team.column<T>(i), end);
  }
}

// Adds what the teams of a block gathered for the columns they share, one team after another, and
// writes the block's partial sum. `shared` has room for C floats.
template <typename T, int kChunks>
__device__ void store_partial(const Values<T> (&sums)[kChunks], const RowTeam& team, int C,
                              float* shared, float* partials) {
  for (int turn = 0; turn < team.rows_per_block; ++turn) {
    if (team.row == turn) {
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
#pragma unroll
        for (int j = 0; j < kWidth<T>; ++j) {
          const int c = team.column<T>(i) + j;
          if (c < C) shared[c] = turn == 0 ? sums[i].v[j] : shared[c] + sums[i].v[j];
        }
      }
    }
    __syncthreads();
  }
  float* partial = partials + static_cast<int64_t>(blockIdx.x) * C;
  for (int c = threadIdx.x; c < C; c += kRowThreads) partial[c] = shared[c];
}

// ---------------------------------------------------------------- launching

inline bool all_aligned(std::initializer_list<const void*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(),
                     [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; });
}

// Rows that lie apart: steps of whole chunks.
inline bool rows_aligned(ElementType type, std::initializer_list<int64_t> strides) {
  const int64_t width = type == ElementType::kFloat ? kWidth<float> : kWidth<__nv_bfloat16>;
  return std::all_of(strides.begin(), strides.end(),
                     [width](int64_t stride) { return stride % width == 0; });
}

// Blocks of `kernel` that the chip holds at once, at most `blocks` and `most_per_sm` on each SM.
template <typename Kernel>
int resident_blocks(Kernel kernel, int64_t blocks, int most_per_sm, int shared_bytes) {
  int device = 0, num_sms = 1, per_sm = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device);
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, kernel, kRowThreads, shared_bytes);
  const int64_t most = static_cast<int64_t>(num_sms) * std::clamp(per_sm, 1, most_per_sm);
  return static_cast<int>(std::min(blocks, most));
}

template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), int blocks, int shared_bytes, CUstream_st* stream,
           const Arguments&... arguments) {
  kernel<<<blocks, kRowThreads, shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
}

// Launches a kernel of rows with as many blocks as the chip holds, at most `most_per_sm` on each
// SM; `num_blocks` receives their number. Returns the launch's cudaError_t.
template <typename Op>
int launch_rows(void (*kernel)(Op, int), const Op& op, int team, int most_per_sm, int shared_bytes,
                CUstream_st* stream, int* num_blocks) {
  const int64_t rows = kRowThreads / team;
  *num_blocks = resident_blocks(kernel, (op.rows + rows - 1) / rows, most_per_sm, shared_bytes);
  return launch(kernel, *num_blocks, shared_bytes, stream, op, team);
}

struct RowPlan {
  int chunks, team;
};

// The fewest idle chunks, then the fewest chunks a thread.
inline RowPlan plan_row(int64_t C, int width) {
  const int64_t needed = (C + width - 1) / width;
  RowPlan best{4, kRowThreads};
  for (int chunks = 4; chunks >= 2; --chunks) {
    for (int team = 32; team <= kRowThreads; team *= 2) {
      if (chunks * team >= needed && chunks * team <= best.chunks * best.team) {
        best = {chunks, team};
      }
    }
  }
  return best;
}

// Calls launch(T{}, chunks, aligned, team) with the first three as compile-time values.
template <typename T, typename Launch>
int with_row_plan(int64_t C, bool aligned, const Launch& launch) {
  const RowPlan plan = plan_row(C, kWidth<T>);
  const auto with_chunks = [&](auto chunks) {
    if (aligned && C % kWidth<T> == 0) return launch(T{}, chunks, std::true_type{}, plan.team);
    return launch(T{}, chunks, std::false_type{}, plan.team);
  };
  if (plan.chunks == 2) return with_chunks(std::integral_constant<int, 2>{});
  if (plan.chunks == 3) return with_chunks(std::integral_constant<int, 3>{});
  return with_chunks(std::integral_constant<int, 4>{});
}

template <typename Launch>
int with_row_plan(ElementType type, int64_t C, bool aligned, const Launch& launch) {
  return type == ElementType::kFloat ? with_row_plan<float>(C, aligned, launch)
                                     : with_row_plan<__nv_bfloat16>(C, aligned, launch);
}

}  // namespace sala
