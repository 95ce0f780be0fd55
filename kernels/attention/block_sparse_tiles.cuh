// Tiles of queries, the union of their block lists, and what of a block each row sees
// (block_sparse_launch.h).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/attention/block_sparse_launch.h"

namespace sala {

// The document of a tile or token: the last one that begins at or before `place`.
__device__ __forceinline__ int find_document(int place, const int* begins, int num_docs) {
  int low = 0, high = num_docs;  // begins[low] <= place < begins[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (begins[middle] <= place ? low : high) = middle;
  }
  return low;
}

// Queries are the last tokens of their document: what to add to a query's row for its place.
__device__ __forceinline__ int position_shift(int doc, const BlockSparseShape& shape) {
  return shape.k_offsets[doc + 1] - shape.k_offsets[doc] - shape.q_offsets[doc + 1];
}
__device__ __forceinline__ int last_visible_block(int token, int doc,
                                                  const BlockSparseShape& shape) {
  return (token + position_shift(doc, shape)) / kSparseBlock;
}
__device__ __forceinline__ const int* list_of(int token, int kv_head,
                                              const BlockSparseShape& shape) {
  return shape.lists +
         (static_cast<int64_t>(kv_head) * shape.num_queries + token) * shape.list_length;
}

// Neighbouring queries of one document, for one KV head. `id` counts the tiles of a head, head
// after head; a document's last ones may be empty.
struct QueryTile {
  int kv_head, token, num_tokens;  // rows of q
  int position;                    // of the first token within its document
  int key_begin, num_keys;         // rows of k: the document's
  __device__ __forceinline__ QueryTile(int64_t id, const BlockSparseShape& shape) {
    const int tile_tokens = shape.tile_tokens;
    const int parts = 64 / tile_tokens;
    const int per_head = shape.num_q_tiles * parts;
    kv_head = static_cast<int>(id / per_head);
    const int place = static_cast<int>(id % per_head);
    const int doc = find_document(place / parts, shape.q_tiles, shape.num_docs);
    token = shape.q_offsets[doc] + (place - shape.q_tiles[doc] * parts) * tile_tokens;
    num_tokens = min(tile_tokens, shape.q_offsets[doc + 1] - token);
    position = token + position_shift(doc, shape);
    key_begin = shape.k_offsets[doc];
    num_keys = shape.k_offsets[doc + 1] - key_begin;
  }
};
__host__ __device__ inline int64_t num_query_tiles(const BlockSparseShape& shape) {
  return static_cast<int64_t>(shape.num_kv_heads) * shape.num_q_tiles * (64 / shape.tile_tokens);
}

// A block and the tokens of the tile that listed it; block -1: the tile is done.
struct Listed {
  int block;
  unsigned members;
};

// Merges the lists of a tile, one lane of the warp per token. Ascending lists give each block once;
// in any other order every token still meets each of its blocks once.
struct ListWalk {
  static constexpr int kNone = 0x7fffffff;
  const int* list;
  int left, last_visible, ahead, block;

  __device__ __forceinline__ ListWalk(const QueryTile& tile, int lane,
                                      const BlockSparseShape& shape)
      : left(0), last_visible(0), ahead(-1) {
    if (lane < tile.num_tokens) {
      list = list_of(tile.token + lane, tile.kv_head, shape);
      left = shape.list_length;
      last_visible = (tile.position + lane) / kSparseBlock;
    }
    read();
    step();
  }
  __device__ __forceinline__ Listed next() {
    const int lowest = __reduce_min_sync(~0u, block);
    const unsigned members = __ballot_sync(~0u, block == lowest);
    if (lowest == kNone) return {-1, 0};
    if (block == lowest) step();
    return {lowest, members};
  }

 private:
  __device__ __forceinline__ void read() {
    ahead = left > 0 ? *list++ : -1;
    --left;
  }
  __device__ __forceinline__ void step() {
    block = kNone;
    while (ahead >= 0 && block == kNone) {
      if (ahead <= last_visible) block = ahead;
      read();
    }
  }
};

// The two rows of a thread's accumulators (gpu/shared_tiles.cuh): row = token of the tile * group +
// head of the group.
struct TileRows {
  int token[2], head[2];
  int position[2];
  unsigned bit[2];  // of the row's token; 0: no such row

  __device__ __forceinline__ TileRows(int first_row, int group, const QueryTile& tile) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_row + 8 * r;
      token[r] = row / group;
      head[r] = row % group;
      position[r] = tile.position + token[r];
      bit[r] = token[r] < tile.num_tokens ? 1u << token[r] : 0;
    }
  }
  // Keys 0 .. limit of the block are seen; -1: none.
  __device__ __forceinline__ int limit(int r, const Listed& listed) const {
    return listed.members & bit[r] ? position[r] - listed.block * kSparseBlock : -1;
  }
};

}  // namespace sala
