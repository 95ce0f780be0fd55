// What the FP8 kernels share: the largest of bf16 values, the scale that follows from it, rounding
// to e4m3.
#pragma once

#include <cuda_fp8.h>

#include "kernels/rows/rows.cuh"

namespace sala {

// Magnitudes of bf16 as integers: their order is that of the numbers, with infinity and then NaN
// above all, so that no comparison loses what is not finite. Two of them in a word.
__device__ inline uint32_t larger_pair(uint32_t largest, uint32_t pair) {
  return __vmaxu2(largest, pair & 0x7fff7fffu);
}

__device__ inline uint32_t larger_pair(uint32_t largest, const Chunk<__nv_bfloat16>& chunk) {
#pragma unroll
  for (const uint32_t word : chunk.words) largest = larger_pair(largest, word);
  return largest;
}

__device__ inline uint32_t larger_half(uint32_t pair) { return max(pair & 0xffffu, pair >> 16); }

struct Fp8Scale {
  float scale, inverse;
};

// From the magnitude of a row's largest value, 16 bits of a bf16.
__device__ inline Fp8Scale fp8_scale(uint32_t magnitude) {
  constexpr float kLargest = 448.0f, kLeast = 1e-30f;
  const float value = __uint_as_float(magnitude << 16);
  const float largest = value < kLeast ? kLeast : value;  // not fmaxf, which would drop a NaN
  return {__fdiv_rn(largest, kLargest), __fdiv_rn(kLargest, largest)};
}

// Two e4m3, the first in the low byte.
__device__ inline uint32_t fp8_pair(float first, float second) {
  return __nv_cvt_float2_to_fp8x2(make_float2(first, second), __NV_SATFINITE, __NV_E4M3);
}

// A chunk of a row, rounded, to columns column … column + 8 of `values`; those at `columns` and
// beyond are left out. kAligned: as of load_chunk.
template <bool kAligned>
__device__ void store_rounded(const Values<__nv_bfloat16>& x, float inverse, uint8_t* values,
                              int column, int columns) {
  constexpr int kChunkColumns = kWidth<__nv_bfloat16>;
  if (column >= columns) return;
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pairs[i] = fp8_pair(x.v[2 * i] * inverse, x.v[2 * i + 1] * inverse);
  }
  if constexpr (kAligned) {
    *reinterpret_cast<uint2*>(values + column) =
        make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
  } else {
#pragma unroll
    for (int i = 0; i < kChunkColumns; ++i) {
      if (column + i < columns) {
        values[column + i] = static_cast<uint8_t>(pairs[i / 2] >> (i % 2 * 8));
      }
    }
  }
}

}  // namespace sala
