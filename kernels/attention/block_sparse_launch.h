// Raw-pointer launchers of the kernels of block-sparse attention. No torch here: nvcc reads it.
// Everything is ordered on `stream` and nothing blocks; results are cudaError_t. No float atomics:
// the same bits at every call.
//
// Forward and dq work on tiles of up to 128 rows: the G query heads of one KV head for each of
// block_sparse_tile_tokens(G) neighbouring tokens, over the union of their lists. Lists are merged
// while the kernel runs, one lane of a warp per token: what comes out is a block and the set of the
// tile's tokens that listed it. dk and dv work on key blocks, over the tokens that listed them
// (ListColumns).
#pragma once

#include <cstdint>

struct CUstream_st;

namespace sala {

constexpr int kSparseBlock = 64;      // keys of a block
constexpr int kSparseMaxGroup = 16;   // query heads per KV head
constexpr int kSparseTileRows = 128;  // of queries and heads
constexpr int kSparseKeyRows = 64;    // rows that a warpgroup gathers for dk and dv

// Tokens of a query tile: one bit of a 32-bit set each, and a divisor of 64.
constexpr int block_sparse_tile_tokens(int group) {
  int tokens = 32;
  while (tokens * group > kSparseTileRows) tokens /= 2;
  return tokens;
}

struct BlockSparseShape {
  const int* lists;                // (NKV, Tq, K) blocks, device
  const int *q_offsets, *q_tiles;  // (D + 1) first query, and 64-query tiles, of each document
  const int *k_offsets, *k_tiles;  // (D + 1) the same of keys: tiles are blocks
  int num_docs, num_q_tiles, num_blocks;  // tiles and blocks of all documents
  int num_kv_heads, group, list_length;
  int tile_tokens;            // block_sparse_tile_tokens(group)
  int num_queries, num_keys;  // tokens
  float scale;                // > 0
};

// The kernels that this device and build have (wgmma and the copy engine, or mma.sync), and whether
// their tiles fit its shared memory.
bool block_sparse_kernels_fit(int64_t head_size);

// q, o (Tq, NH, HS), k, v (Tk, NKV, HS) bf16, HS 64 or 128; lse (NH, Tq). A token that listed
// nothing gets zeros and -inf.
int launch_block_sparse_forward(const void* q, const void* k, const void* v, void* o, float* lse,
                                int64_t head_size, const BlockSparseShape& shape,
                                CUstream_st* stream);

// What the backward needs of each row: stats (Tq, NH, 2) = lse log2(e), sum(d_o * o).
int launch_block_sparse_stats(const void* o, const void* d_o, const float* lse, float* stats,
                              int64_t head_size, const BlockSparseShape& shape,
                              CUstream_st* stream);

int launch_block_sparse_dq(const void* q, const void* k, const void* v, const void* d_o,
                           const float* stats, void* dq, int64_t head_size,
                           const BlockSparseShape& shape, CUstream_st* stream);

// The lists by columns: for each (KV head, block) the tokens that listed it, ascending. A column is
// cut into pieces of up to `piece_tokens`, the work of one thread block each; every column has one.
struct ListColumns {
  int piece_tokens, chunk_tokens;  // chunk: tokens that one thread block transposes
  int num_columns, num_chunks;     // columns: NKV * num_blocks
  int max_pieces, max_shared;      // pieces of all columns; of columns with more than one
  int* counts;                     // (NKV, num_chunks, num_blocks) room
  int* sizes;                      // (num_columns)
  int64_t* starts;                 // (num_columns) into tokens
  int* first_pieces;               // (num_columns + 1)
  int* first_shared;               // (num_columns + 1)
  int* piece_columns;              // (max_pieces)
  int* tokens;                     // (NKV * Tq * K)
};

ListColumns plan_list_columns(const BlockSparseShape& shape);  // sizes only
int launch_list_columns(const ListColumns& columns, const BlockSparseShape& shape,
                        CUstream_st* stream);

// partials (max_shared, 2, 64, HS) fp32: room for pieces of columns that have several.
int launch_block_sparse_dk_dv(const void* q, const void* k, const void* v, const void* d_o,
                              const float* stats, const ListColumns& columns, float* partials,
                              void* dk, void* dv, int64_t head_size, const BlockSparseShape& shape,
                              CUstream_st* stream);

}  // namespace sala
