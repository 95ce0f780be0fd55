// Raw-pointer launchers of the kernels of block selection (ops.h). No torch here: nvcc reads it.
// Everything is ordered on `stream` and nothing blocks; results are cudaError_t.
//
// Queries that see more than K blocks are scored, in tiles of neighbours of one document. The
// scores of a slab of tiles lie in memory, one row per query, until the lists are cut from them.
// No result depends on where a tile or a slab begins: a query's sums run over the windows in the
// order of its document, whatever its neighbours are.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace sala {

constexpr int kSelectMaxGroup = 16;          // query heads of a KV head
constexpr int kSelectMaxBlocks = 32 * 1024;  // of one document
constexpr int kSelectKeyTile = 128;          // compressed keys of a tile
constexpr int kSelectBlockTile = kSelectKeyTile / 4;

// Query heads that a tile sets aside for a group: a power of two.
constexpr int select_padded_group(int64_t group) {
  int padded = 1;
  while (padded < group) padded *= 2;
  return padded;
}
// Queries of a tile: two warpgroups, 128 rows of query heads each.
constexpr int select_tile_queries(int64_t group) { return 2 * 128 / select_padded_group(group); }

struct SelectInput {
  const int* q_offsets;    // (D + 1) first query of each document; device, like the next three
  const int* k_offsets;    // (D + 1) first key
  const int* query_tiles;  // (D + 1) tiles of scored queries before each document
  // (2 D + 1) tiles of compressed keys before entry 2d, the windows of document d, and before
  // 2d + 1, its coarse windows. Documents without scored queries have none.
  const int* key_tiles;
  int num_docs;
  int num_queries, num_heads, num_kv_heads, head_size;
  int stride;  // tokens from one window to the next: half a window, a quarter of a block
  int init_blocks, local_blocks, list_size;
  int num_key_tiles;
  float scale;  // > 0
};

// k (Tk, NKV, HS) bf16 -> compressed (NKV, num_key_tiles, kSelectKeyTile * HS) bf16: means in fp32,
// rounded, in the layout that the scores' products read. Places without a window stay as they are.
int launch_select_compress(const void* k, void* compressed, const SelectInput& input,
                           CUstream_st* stream);

// Query tiles [first_tile, first_tile + num_tiles). Row (head * num_tiles + tile - first_tile) *
// select_tile_queries + query of the tile.
struct SelectSlab {
  int first_tile, num_tiles;
  int row_blocks;  // a multiple of kSelectBlockTile
  float* scores;  // (rows, row_blocks) largest weight among the windows 4b - 1 .. 4b + 3 of block b
  // (rows, row_blocks / 8) weight of the last window of every eighth block: it touches the next
  // block too, whose score lacks it.
  float* edges;
  // Thread blocks that share out the keys of a tile of queries: where there are few such tiles.
  // Each takes all coarse keys, and its part of the others.
  int parts = 1;
};

// q (Tq, NH, HS) bf16, HS 64 or 128, NH / NKV <= kSelectMaxGroup; compute capability 9.0.
int launch_select_scores(const void* q, const void* compressed, const SelectInput& input,
                         const SelectSlab& slab, CUstream_st* stream);

// lists (NKV, Tq, K) int32: of the slab's queries, by their scores;
int launch_select_best(const SelectInput& input, const SelectSlab& slab, int* lists,
                       CUstream_st* stream);
// and of the queries that see at most K blocks.
int launch_select_all(const SelectInput& input, int* lists, CUstream_st* stream);

}  // namespace sala
