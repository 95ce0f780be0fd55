// What a thread block works on in the kernel of dk and dv (block_sparse_keys.cu), and how keys and
// the rows of the tokens that listed them get into its shared memory.
#pragma once

#include <type_traits>

#include "kernels/attention/block_sparse_pipes.cuh"

namespace sala {

// Tokens whose rows fill a tile.
__device__ __forceinline__ int key_tile_tokens(int group) {
  return min(32, kSparseKeyRows / group);
}
// Behind a tile's stats: the last key of the block that each row may see.
__device__ __forceinline__ int* limits_of(char* stats) {
  return reinterpret_cast<int*>(stats + kSparseKeyRows * sizeof(float2));
}

template <class Arch, int HS, int kStageCount>
struct KeyPlan {
  static constexpr int kStages = kStageCount;  // Ampere: one for each warpgroup
  static constexpr int kConsumers = 2 * tiles::kWarpgroup;
  static constexpr int kThreads = kConsumers + (Arch::kHasProducer ? tiles::kWarpgroup : 0);
  static constexpr int kTile = HS / 64 * kHalfBytes;
  static constexpr int kStage = 2 * kTile;     // q, d_o
  static constexpr int kStagesAt = 2 * kTile;  // behind k, v
  static constexpr int kStatsAt = kStagesAt + kStages * kStage;
  static constexpr int kStats = kSparseKeyRows * (sizeof(float2) + sizeof(int));
  static constexpr int kShared = kStatsAt + kStages * kStats + kAlignment;
  static constexpr int kExchange = 64 * HS * sizeof(float);  // one of dk, dv of a warpgroup
  static_assert(2 * kExchange <= kStages * kStage);
};

// Boxes of the copy engine, of q and d_o: a token's G rows, and those of four neighbouring tokens.
struct TokenBoxes {
  CUtensorMap one[2], four[2];
};
struct NoBoxes {};
template <class Arch>
using BoxesOf = std::conditional_t<Arch::kHasProducer, TokenBoxes, NoBoxes>;

struct KeyTensors {
  const __nv_bfloat16 *q, *k, *v, *d_o;
  const float2* stats;
};

// Which keys and which tokens a thread block works on.
struct ColumnPiece {
  int column, kv_head, doc, block, num_keys;  // num_keys: of the block
  int64_t key_row;
  const int* tokens;
  int num_tokens;
  int shared_slot;  // of its partial sums; -1: the column's only piece

  __device__ __forceinline__ ColumnPiece(int number, const ListColumns& columns,
                                         const BlockSparseShape& shape) {
    column = columns.piece_columns[number];
    locate(shape);
    const int first = columns.first_pieces[column], part = number - first;
    const bool alone = columns.first_pieces[column + 1] == first + 1;
    const int begin = part * columns.piece_tokens;
    tokens = columns.tokens + columns.starts[column] + begin;
    num_tokens = min(columns.piece_tokens, columns.sizes[column] - begin);
    shared_slot = alone ? -1 : columns.first_shared[column] + part;
  }
  __device__ __forceinline__ int num_tiles(int group) const {
    const int tile_tokens = key_tile_tokens(group);
    return (num_tokens + tile_tokens - 1) / tile_tokens;
  }
  __device__ __forceinline__ int64_t row_of(int token, int head,
                                            const BlockSparseShape& shape) const {
    return (static_cast<int64_t>(token) * shape.num_kv_heads + kv_head) * shape.group + head;
  }
  __device__ __forceinline__ ColumnPiece(int of_column, const BlockSparseShape& shape)
      : column(of_column) {
    locate(shape);
  }

 private:
  __device__ __forceinline__ void locate(const BlockSparseShape& shape) {
    kv_head = column / shape.num_blocks;
    const int place = column % shape.num_blocks;
    doc = find_document(place, shape.k_tiles, shape.num_docs);
    block = place - shape.k_tiles[doc];
    key_row = shape.k_offsets[doc] + int64_t{block} * kSparseBlock;
    num_keys = min(kSparseBlock, static_cast<int>(shape.k_offsets[doc + 1] - key_row));
  }
};

// On Ampere the threads of a warpgroup copy a tile's rows: q, d_o, stats, and the last key of the
// block that each may see.
template <class Plan, int HS>
struct CopiedRows {
  const KeyTensors& tensors;
  const BlockSparseShape& shape;
  const ColumnPiece& piece;
  int thread, tile_tokens, shift;

  __device__ __forceinline__ CopiedRows(const KeyTensors& from, const BlockSparseShape& of,
                                        const ColumnPiece& what, int thread_of_group)
      : tensors(from), shape(of), piece(what), thread(thread_of_group) {
    tile_tokens = key_tile_tokens(shape.group);
    shift = position_shift(piece.doc, shape) - piece.block * kSparseBlock;
  }
  // Starts the copies of tile `n`. Rows that are none become zeros: they add nothing.
  __device__ __forceinline__ void start(int n, uint32_t stage, char* stats) const {
    const int first = n * tile_tokens, count = min(tile_tokens, piece.num_tokens - first);
    constexpr int kPieces = HS / 8;                     // of a row
    constexpr int kStep = tiles::kWarpgroup / kPieces;  // rows that a warpgroup copies at once
    const int num_rows = count * shape.group, lane = thread % 32;
    const int listed = lane < count ? piece.tokens[first + lane] : 0;
    const int row_piece = thread % kPieces;
#pragma unroll
    for (int i = 0; i < kSparseKeyRows / kStep; ++i) {
      const int row = thread / kPieces + i * kStep;
      const int token = __shfl_sync(~0u, listed, (row / shape.group) & 31);
      const bool valid = row < num_rows;
      const int64_t from = valid ? row_of(token, row % shape.group) * HS + row_piece * 8 : 0;
      const uint32_t to =
          stage + row_piece / 8 * kHalfBytes + tiles::piece_offset(row, row_piece % 8);
      ampere::copy_piece(to, tensors.q + from, valid);
      ampere::copy_piece(to + Plan::kTile, tensors.d_o + from, valid);
    }
    const int row = thread % kSparseKeyRows;
    const int token = __shfl_sync(~0u, listed, (row / shape.group) & 31);
    const bool valid = row < num_rows;
    if (thread < kSparseKeyRows) {
      reinterpret_cast<float2*>(stats)[row] =
          valid ? tensors.stats[row_of(token, row % shape.group)] : make_float2(0, 0);
      // Later tokens see more: the first row tells whether any row of the tile needs a mask.
      limits_of(stats)[row] = valid ? token + shift : kSparseBlock;
    }
    ampere::copies_commit();
  }

 private:
  __device__ __forceinline__ int64_t row_of(int token, int head) const {
    return piece.row_of(token, head, shape);
  }
};

#ifdef SALA_SM90A
// On Hopper one warp feeds the copy engine, a lane per token of the tile: a token's G rows of 64
// columns are one box. Tokens that are none lie past the end of the tensor and read as zeros.
//
// Four lanes' tokens that are neighbours in memory are one box as well. The engine takes its time
// by the box, and neighbouring tokens list nearly the same blocks, so that most of a column comes
// in runs: with a box per token dk and dv of 128K tokens took 55.2 ms instead of 46.7 (32/2 heads
// of 128, one H200), and twice as long where boxes are smallest (32K tokens, 9/3 heads of 64: 5.27
// instead of 2.66). Places in the tile that are multiples of four begin a box: with 16 heads in a
// group, as MiniCPM-SALA has them, a tile is four tokens.
template <class Plan, int HS>
struct BoxedRows {
  const KeyTensors& tensors;
  const TokenBoxes& boxes;
  const BlockSparseShape& shape;
  const ColumnPiece& piece;
  int lane, tile_tokens, shift;
  int slot[2], head[2];  // of the rows `lane` and `lane` + 32: which token of the tile, which head

  __device__ __forceinline__ BoxedRows(const KeyTensors& from, const TokenBoxes& token_boxes,
                                       const BlockSparseShape& of, const ColumnPiece& what,
                                       int my_lane)
      : tensors(from), boxes(token_boxes), shape(of), piece(what), lane(my_lane) {
    tile_tokens = key_tile_tokens(shape.group);
    shift = position_shift(piece.doc, shape) - piece.block * kSparseBlock;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      slot[r] = (lane + 32 * r) / shape.group;
      head[r] = (lane + 32 * r) % shape.group;
    }
  }
  // This lane's token of tile `n`; -1: none.
  __device__ __forceinline__ int token_of(int n) const {
    const int i = n * tile_tokens + lane;
    return lane < tile_tokens && i < piece.num_tokens ? piece.tokens[i] : -1;
  }
  __device__ __forceinline__ void start(int listed, char* stage, char* stats,
                                        uint64_t* full) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = lane + 32 * r, token = __shfl_sync(~0u, listed, slot[r] & 31);
      const bool valid = slot[r] < tile_tokens && token >= 0;
      limits_of(stats)[row] = valid ? token + shift : kSparseBlock;
      ampere::copy_pair(tiles::shared_address(stats) + row * sizeof(float2),
                        tensors.stats + (valid ? piece.row_of(token, head[r], shape) : 0), valid);
    }
    hopper::copies_arrive(full);
    if (lane == 0) {
      hopper::barrier_expect(full, tile_tokens * shape.group * 2 * (HS / 64) * tiles::kRowBytes);
    } else {
      hopper::barrier_arrive(full);  // for the limits that this lane wrote
    }
    __syncwarp();
    copy_rows(listed, stage, full);
  }

 private:
  __device__ __forceinline__ void copy_rows(int listed, char* stage, uint64_t* full) const {
    const int first = lane & ~3, leader = __shfl_sync(~0u, listed, first);
    const unsigned follows = __ballot_sync(~0u, listed >= 0 && listed == leader + lane % 4);
    const bool four = (follows >> first & 0xf) == 0xf;
    if (lane >= tile_tokens || (four && lane != first)) return;
    const CUtensorMap* maps = four ? boxes.four : boxes.one;
    const int token = listed < 0 ? shape.num_queries : listed;
    const int place = lane * shape.group * tiles::kRowBytes;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int half = 0; half < HS / 64; ++half) {
        hopper::copy_box(stage + n * Plan::kTile + half * kHalfBytes + place, &maps[n], 64 * half,
                         piece.kv_head * shape.group, token, full);
      }
    }
  }
};
#endif

// Rows of the stages that no token's heads fill: zeros, once, by the threads of both warpgroups.
template <class Plan, int HS>
__device__ __forceinline__ void clear_unused_rows(char* stages, int group) {
  const int first = key_tile_tokens(group) * group;
  constexpr int kRowPieces = tiles::kRowBytes / 16;
  const int pieces = (kSparseKeyRows - first) * kRowPieces;
  for (int half = 0; half < Plan::kStages * Plan::kStage / kHalfBytes; ++half) {
    for (int i = threadIdx.x; i < pieces; i += Plan::kConsumers) {
      reinterpret_cast<uint4*>(stages + half * kHalfBytes + first * tiles::kRowBytes)[i] =
          make_uint4(0, 0, 0, 0);
    }
  }
}

// k and v of the block, by the threads of both warpgroups; rows past the document's end are zero.
template <class Plan, int HS>
__device__ __forceinline__ void load_keys(const KeyTensors& tensors, const ColumnPiece& piece,
                                          const BlockSparseShape& shape, uint32_t to) {
  constexpr int kPieces = HS / 8;
  for (int i = threadIdx.x; i < kSparseBlock * kPieces; i += Plan::kConsumers) {
    const int row = i / kPieces, part = i % kPieces;
    const bool valid = row < piece.num_keys;
    const int64_t from =
        ((piece.key_row + (valid ? row : 0)) * shape.num_kv_heads + piece.kv_head) * HS + part * 8;
    const uint32_t place = to + part / 8 * kHalfBytes + tiles::piece_offset(row, part % 8);
    ampere::copy_piece(place, tensors.k + from, valid);
    ampere::copy_piece(place + Plan::kTile, tensors.v + from, valid);
  }
  ampere::copies_commit();
  ampere::copies_wait<0>();
}

}  // namespace sala
