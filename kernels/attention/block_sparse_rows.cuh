// What the kernels that own query tiles share beside their pipes: the walk over tiles, which keys a
// row sees, and rows on their way to memory.
#pragma once

#include <cmath>

#include "kernels/attention/block_sparse_pipes.cuh"
#include "kernels/gpu/exp2.cuh"

namespace sala {

// The tokens of 64 rows of a tile.
__device__ __forceinline__ unsigned tokens_of_rows(int first_row, int group) {
  const int first = first_row / group, last = (first_row + 63) / group;
  if (first > 31) return 0;
  const unsigned up_to_last = last >= 31 ? ~0u : (2u << last) - 1;
  return up_to_last & ~((1u << first) - 1);
}

// Products of keys that a row does not see become -inf. False where no row of the warp sees any;
// they are then left as they are.
__device__ __forceinline__ bool hide_keys(float (&s)[32], const TileRows& rows,
                                          const Listed& listed, const Lane& at) {
  const int limit[2] = {rows.limit(0, listed), rows.limit(1, listed)};
  if (!__any_sync(~0u, limit[0] >= 0 || limit[1] >= 0)) return false;
  if (__any_sync(~0u, min(limit[0], limit[1]) < kSparseBlock - 1)) {
#pragma unroll
    for (int e = 0; e < 32; ++e) {
      if ((e / 4) * 8 + at.column + e % 2 > limit[(e / 2) % 2]) s[e] = -INFINITY;
    }
  }
  return true;
}

// The fragments of a warpgroup's 64 rows to the tile's queries in memory as bf16, by way of the
// warp's own rows of `staging` (halves of 128 rows).
template <int HS, int kRowHalf>
__device__ __forceinline__ void store_query_rows(__nv_bfloat16* to, char* staging,
                                                 const float (&x)[HS / 2], int first_row,
                                                 const QueryTile& tile,
                                                 const BlockSparseShape& shape, const Lane& at) {
  const int warp_row = first_row + 16 * at.warp;
  __syncwarp();
#pragma unroll
  for (int half = 0; half < HS / 64; ++half) {
    store_fragments(staging + half * kRowHalf, warp_row, at, x + 32 * half, 1);
  }
  __syncwarp();
  const int num_rows = tile.num_tokens * shape.group;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = warp_row + i * 4 + at.lane / 8, piece = at.lane % 8;
    if (row >= num_rows) break;
    const int64_t token = tile.token + row / shape.group, head = row % shape.group;
    __nv_bfloat16* out =
        to + ((token * shape.num_kv_heads + tile.kv_head) * shape.group + head) * HS + piece * 8;
#pragma unroll
    for (int half = 0; half < HS / 64; ++half) {
      *reinterpret_cast<uint4*>(out + 64 * half) = *reinterpret_cast<const uint4*>(
          staging + half * kRowHalf + tiles::piece_offset(row, piece));
    }
  }
}

// Calls consume(pipe, tile) in the consumers' warpgroups for every tile of this thread block.
template <class Arch, class Plan, int HS, int kTensors, class Inputs, class Consume>
__device__ __forceinline__ void run_query_tiles(const Inputs& inputs, const BlockSparseShape& shape,
                                                const Consume& consume) {
  using Pipe = QueryPipe<Arch, Plan, HS, kTensors>;
  extern __shared__ char raw[];
  __shared__ Listed listed[Plan::kStages];
  char* shared = align_shared(raw);
  const int64_t num_tiles = num_query_tiles(shape);
  const auto for_each_tile = [&](const auto& visit) {
    for (int64_t id = blockIdx.x; id < num_tiles; id += gridDim.x) {
      const QueryTile tile(id, shape);
      if (tile.num_tokens > 0) visit(tile);
    }
  };
  if constexpr (!Arch::kHasProducer) {
    Pipe pipe{inputs, shape, shared, listed};
    for_each_tile([&](const QueryTile& tile) {
      ListWalk walk(tile, threadIdx.x % 32, shape);
      pipe.begin_tile(tile, walk);
      consume(pipe, tile);
    });
  } else {
#ifdef SALA_SM90A
    __shared__ uint64_t full[Plan::kStages], empty[Plan::kStages], rows_full, rows_empty;
    Pipe pipe{shape, shared, listed, full, empty, &rows_full, &rows_empty};
    if (threadIdx.x == 0) pipe.init();
    __syncthreads();
    if (threadIdx.x >= Plan::kConsumers) {
      hopper::keep_registers<40>();
      if (threadIdx.x < Plan::kConsumers + 32) {
        for_each_tile([&](const QueryTile& tile) { pipe.produce(inputs, tile, threadIdx.x % 32); });
      }
    } else {
      hopper::take_registers<232>();
      pipe.group = threadIdx.x / tiles::kWarpgroup;
      for_each_tile([&](const QueryTile& tile) {
        pipe.begin_tile(tile);
        consume(pipe, tile);
      });
    }
#else
    __trap();  // never chosen: sparse_arch()
#endif
  }
}

}  // namespace sala
