// Where the queries and windows of block selection lie (launch.h).
#pragma once

#include <cuda_runtime.h>

#include "kernels/selection/launch.h"

namespace sala {

// The last of `count` ascending entries that is at most `place`; entries[0] is.
__device__ __forceinline__ int find_entry(const int* entries, int count, int place) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (entries[middle] <= place ? low : high) = middle;
  }
  return low;
}

// Windows of 2 * half tokens, one every `half`, within the first `num_tokens` of a document.
__device__ __forceinline__ int num_windows(int num_tokens, int half) {
  return max(num_tokens / half - 1, 0);
}

// The tile of scored queries with the given number.
struct ScoredTile {
  int doc;
  int first, count;  // packed queries
  int position;      // of the first within its document

  __device__ __forceinline__ ScoredTile(int number, int tile_queries, const SelectInput& input) {
    doc = find_entry(input.query_tiles, input.num_docs, number);
    const int num_queries = input.q_offsets[doc + 1] - input.q_offsets[doc];
    const int num_keys = input.k_offsets[doc + 1] - input.k_offsets[doc];
    const int before = num_keys - num_queries;
    const int all_listed = input.list_size * 4 * input.stride;
    const int begin =
        max(all_listed - before, 0) + (number - input.query_tiles[doc]) * tile_queries;
    first = input.q_offsets[doc] + begin;
    count = min(tile_queries, num_queries - begin);
    position = before + begin;
  }
};

// Tiles of windows that this thread block scores: its part (blockIdx.y) of those that hold blocks
// that are not forced. Without any, nothing of the tile is scored.
struct FineTiles {
  int first, count;

  __device__ __forceinline__ FineTiles(const ScoredTile& tile, const SelectInput& input,
                                       const SelectSlab& slab) {
    const int last = tile.position + tile.count - 1;
    const int blocks = last / (4 * input.stride) - input.local_blocks;
    const int all = (max(blocks, 0) + kSelectBlockTile - 1) / kSelectBlockTile;
    const int part = blockIdx.y;
    first = all * part / slab.parts;
    count = all * (part + 1) / slab.parts - first;
  }
};

}  // namespace sala
