// Moves between the fragments of a warpgroup, tiles in shared memory, and tokens and states in
// memory, as the lightning kernels need them.
#pragma once

#include "kernels/gpu/shared_tiles.cuh"
#include "kernels/lightning/launch.h"

namespace sala {

constexpr int kHalfBytes = kLightningTileTokens * tiles::kRowBytes;  // 64 tokens x 64 columns
constexpr int kAlignment = 1024;  // of tiles; dynamic shared memory has this much to spare

__device__ __forceinline__ char* align_shared(char* raw) {
  const uint32_t behind = tiles::shared_address(raw) % kAlignment;
  return raw + (behind == 0 ? 0 : kAlignment - behind);
}

// A warp's place among the fragments of its warpgroup (kernels/gpu/hopper.cuh).
struct Lane {
  int warp, lane, row, column;  // warp 0 .. 3; row of its first accumulator, column of its first

  __device__ __forceinline__ explicit Lane(int thread)
      : warp(thread / 32), lane(thread % 32), row(warp * 16 + lane / 4), column(2 * (lane % 4)) {}
};

// Fragments of the transpose of a tile (64 tokens x 64 features), each token weighed: rows are
// features, the reduction runs over tokens. weight(j) is the weight of token j.
template <class Weight>
__device__ __forceinline__ void load_weighted_transpose(uint32_t (&a)[4][4], const char* tile,
                                                        const Lane& at, const Weight& weight) {
  const int token = (at.lane & 7) + ((at.lane >> 4) & 1) * 8;
  const int piece = at.warp * 2 + ((at.lane >> 3) & 1);
  const uint32_t base = tiles::shared_address(tile);
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    tiles::load_matrices_transposed(a[s], base + tiles::piece_offset(16 * s + token, piece));
    const int j = 16 * s + at.column;
    const float w[4] = {weight(j), weight(j + 1), weight(j + 8), weight(j + 9)};
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float low = __uint_as_float(a[s][r] << 16);
      const float high = __uint_as_float(a[s][r] & 0xffff0000u);
      a[s][r] = tiles::pack(low * w[(r / 2) * 2], high * w[(r / 2) * 2 + 1]);
    }
  }
}

// Accumulators of 64 rows x 64 columns as fragments of a left operand.
__device__ __forceinline__ void as_left_operand(uint32_t (&a)[4][4], const float* p) {
#pragma unroll
  for (int s = 0; s < 4; ++s) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int i = (2 * s + r / 2) * 4 + (r % 2) * 2;
      a[s][r] = tiles::pack(p[i], p[i + 1]);
    }
  }
}

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void store_matrices(uint32_t address, uint32_t a, uint32_t b, uint32_t c,
                                               uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}
#endif

// Accumulators of 64 x 64, rounded, to a swizzled tile: the warp's 16 rows go to first_row and on.
__device__ __forceinline__ void store_fragments(char* tile, int first_row, const Lane& at,
                                                const float* x, float factor) {
#if __CUDA_ARCH__ >= 900
  const int row = first_row + (at.lane & 15);
  const uint32_t base = tiles::shared_address(tile);
#pragma unroll
  for (int b = 0; b < 8; b += 2) {
    const float* y = x + 4 * b;
    store_matrices(
        base + tiles::piece_offset(row, b + at.lane / 16),
        tiles::pack(y[0] * factor, y[1] * factor), tiles::pack(y[2] * factor, y[3] * factor),
        tiles::pack(y[4] * factor, y[5] * factor), tiles::pack(y[6] * factor, y[7] * factor));
  }
#else
#pragma unroll
  for (int i = 0; i < 32; i += 2) {
    const int row = first_row + at.lane / 4 + ((i / 2) % 2) * 8;
    *reinterpret_cast<uint32_t*>(tile + tiles::piece_offset(row, i / 4) + at.lane % 4 * 4) =
        tiles::pack(x[i] * factor, x[i + 1] * factor);
  }
#endif
}

// Accumulators of 64 tokens x 64 columns to memory as bf16, in rows of 128 contiguous bytes, by way
// of 2 KB of shared memory that belongs to the warp. `out`: the tile's first token.
__device__ __forceinline__ void store_tokens(__nv_bfloat16* out, int64_t token_stride, int num_rows,
                                             char* warp_staging, const Lane& at, const float* x,
                                             float factor) {
  __syncwarp();
  store_fragments(warp_staging, 0, at, x, factor);
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = i * 4 + at.lane / 8, piece = at.lane % 8;
    const uint4 value =
        *reinterpret_cast<const uint4*>(warp_staging + tiles::piece_offset(row, piece));
    const int token = at.warp * 16 + row;
    if (token < num_rows) {
      *reinterpret_cast<uint4*>(out + token * token_stride + piece * 8) = value;
    }
  }
}

// x += factor * the 64 x 64 block at (row, column) of a (HS, HS) fp32 state.
__device__ __forceinline__ void add_state(float* x, const float* state, int HS, int row, int column,
                                          bool transposed, float factor, const Lane& at) {
  row += at.row;
  column += at.column;
  if (transposed) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      x[i] += factor * state[(column + (i / 4) * 8 + i % 2) * HS + row + ((i / 2) % 2) * 8];
    }
    return;
  }
  float2 y[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    y[i] =
        *reinterpret_cast<const float2*>(state + (row + (i % 2) * 8) * HS + column + (i / 2) * 8);
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    x[2 * i] += factor * y[i].x;
    x[2 * i + 1] += factor * y[i].y;
  }
}
__device__ __forceinline__ void put_state(float* state, const float* x, int HS, int row, int column,
                                          float factor, const Lane& at) {
#pragma unroll
  for (int i = 0; i < 32; i += 2) {
    const int r = row + at.row + ((i / 2) % 2) * 8, c = column + (i / 4) * 8 + at.column;
    *reinterpret_cast<float2*>(state + r * HS + c) = make_float2(x[i] * factor, x[i + 1] * factor);
  }
}

}  // namespace sala
