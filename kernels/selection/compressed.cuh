// Where compressed keys lie (compress.cu), for the kernels that write them.
//
// A tile of 128 keys is HS / 64 pieces of 128 swizzled rows (gpu/shared_tiles.cuh), so that one
// plain copy brings it where the products read it. The rows of a tile of windows are permuted: the
// four windows of a block lie where one thread's accumulators will hold them. Tiles of coarse
// windows are in order.
#pragma once

#include "kernels/gpu/shared_tiles.cuh"
#include "kernels/rows/rows.cuh"
#include "kernels/selection/launch.h"

namespace sala {

// Row of window w of a tile: block w / 4 belongs to warp w / 32 and its lanes 4 (w / 4 % 8) and on;
// windows 0 .. 3 of it to their rows in the tile's first and second 64 rows.
__device__ __forceinline__ int row_of_window(int w) {
  return 64 * (w % 4 / 2) + 16 * (w / 32) + 8 * (w % 2) + w / 4 % 8;
}

// Columns 8 chunk .. 8 chunk + 7 of a row of a tile.
__device__ __forceinline__ void store_piece(__nv_bfloat16* tile, int row, int chunk,
                                            const Values<__nv_bfloat16>& values) {
  char* to = reinterpret_cast<char*>(tile) + chunk / 8 * kSelectKeyTile * tiles::kRowBytes +
             tiles::piece_offset(row, chunk % 8);
  store_chunk<true>(round_to_type(values), reinterpret_cast<__nv_bfloat16*>(to), 0, 8);
}

// The mean of `count` half windows from `first` on, from their sums.
template <int HS>
__device__ __forceinline__ Values<__nv_bfloat16> mean_of(float (*sums)[HS], int first, int count,
                                                         int chunk, int stride) {
  Values<__nv_bfloat16> mean{};
  for (int h = first; h < first + count; ++h) {
#pragma unroll
    for (int i = 0; i < 8; ++i) mean.v[i] += sums[h][chunk * 8 + i];
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) mean.v[i] /= static_cast<float>(count * stride);
  return mean;
}

// The sum of `stride` rows of keys, `step` elements from one to the next.
__device__ __forceinline__ Values<__nv_bfloat16> sum_of_rows(const __nv_bfloat16* row, int stride,
                                                             int64_t step, int chunk, int HS) {
  Values<__nv_bfloat16> sum{};
  for (int t = 0; t < stride; ++t, row += step) {
    const Values<__nv_bfloat16> x = widen(load_chunk<true>(row, chunk * 8, HS));
#pragma unroll
    for (int i = 0; i < 8; ++i) sum.v[i] += x.v[i];
  }
  return sum;
}

}  // namespace sala
