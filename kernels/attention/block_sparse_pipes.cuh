// How the kernels that own query tiles get their rows and the listed blocks of K and V into shared
// memory: on Hopper a warp of its own merges the lists and feeds the copy engine, on Ampere one
// warp merges and every thread copies. Both offer the consumers the same verbs.
#pragma once

#include <type_traits>

#include "kernels/attention/block_sparse_tiles.cuh"
#include "kernels/lightning/arch.cuh"

namespace sala {

// A listed block and the stage that holds its keys and values.
struct HeldBlock {
  Listed listed;
  int stage;
};

template <class Arch, int HS, int kTensors, int kStageCount>
struct QueryPlan {
  static constexpr int kStages = kStageCount;
  static constexpr int kConsumers = 2 * tiles::kWarpgroup;
  static constexpr int kThreads = kConsumers + (Arch::kHasProducer ? tiles::kWarpgroup : 0);
  static constexpr int kTile = HS / 64 * kHalfBytes;  // of 64 keys
  static constexpr int kStage = 2 * kTile;
  static constexpr int kRowHalf = kSparseTileRows * tiles::kRowBytes;
  static constexpr int kRows = HS / 64 * kRowHalf;  // of one tensor of queries
  static constexpr int kStagesAt = kTensors * kRows;
  static constexpr int kShared = kStagesAt + kStages * kStage + kAlignment;
};

// rows: q (and d_o); keys: k and v.
template <int kTensors>
struct MappedQueries {
  CUtensorMap rows[kTensors], keys[2];
};
template <int kTensors>
struct PlainQueries {
  const __nv_bfloat16 *rows[kTensors], *keys[2];
};

template <class Arch, int kTensors>
using QueryInputs =
    std::conditional_t<Arch::kHasProducer, MappedQueries<kTensors>, PlainQueries<kTensors>>;

// A place in a ring of stages.
template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t round = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      ++round;
    }
  }
};

template <class Arch, class Plan, int HS, int kTensors>
struct QueryPipe;

template <class Plan, int HS, int kTensors>
struct QueryPipe<Ampere, Plan, HS, kTensors> {
  using Inputs = PlainQueries<kTensors>;
  static constexpr bool kSkips = false;  // both warpgroups copy, so both meet every block
  static_assert(Plan::kStages == 2);
  const Inputs& inputs;
  const BlockSparseShape& shape;
  char* shared;
  Listed* listed;  // kStages, shared
  ListWalk* walk = nullptr;
  const QueryTile* tile = nullptr;
  int next_stage = 0;
  bool finished = false;

  __device__ __forceinline__ void barrier() { tiles::named_barrier(0, Plan::kThreads); }
  __device__ __forceinline__ void begin_tile(const QueryTile& now, ListWalk& merged) {
    tile = &now;
    walk = &merged;
    finished = false;
    next_stage = 0;
    copy_rows();
    start(0);
    if (!finished) start(1);
    ampere::copies_wait<0>();
    barrier();
  }
  template <class Finish>
  __device__ __forceinline__ HeldBlock next(unsigned, const Lane&, const Finish&) {
    ampere::copies_wait<0>();
    barrier();
    const HeldBlock held = {listed[next_stage], next_stage};
    next_stage ^= 1;
    return held;
  }
  __device__ __forceinline__ void leave(const HeldBlock& held, const Lane&) {
    barrier();
    if (!finished) start(held.stage);
  }
  __device__ __forceinline__ void end_tile(const Lane&) { barrier(); }
  __device__ __forceinline__ char* rows(int tensor) { return shared + tensor * Plan::kRows; }
  __device__ __forceinline__ uint32_t keys(const HeldBlock& held) {
    return tiles::shared_address(shared) + Plan::kStagesAt + held.stage * Plan::kStage;
  }
  __device__ __forceinline__ uint32_t values(const HeldBlock& held) {
    return keys(held) + Plan::kTile;
  }

 private:
  static constexpr int kPieces = HS / 8;  // of a row

  __device__ __forceinline__ void copy_rows() {
    const uint32_t to = tiles::shared_address(shared);
    const int num_rows = tile->num_tokens * shape.group;
    const int64_t first = static_cast<int64_t>(tile->token) * shape.num_kv_heads + tile->kv_head;
    for (int i = threadIdx.x; i < kSparseTileRows * kPieces; i += Plan::kThreads) {
      const int row = i / kPieces, piece = i % kPieces;
      const bool valid = row < num_rows;
      const int64_t token = valid ? row / shape.group : 0, head = valid ? row % shape.group : 0;
      const int64_t from =
          ((first + token * shape.num_kv_heads) * shape.group + head) * HS + piece * 8;
      const uint32_t place = to + piece / 8 * Plan::kRowHalf + tiles::piece_offset(row, piece % 8);
#pragma unroll
      for (int n = 0; n < kTensors; ++n) {
        ampere::copy_piece(place + n * Plan::kRows, inputs.rows[n] + from, valid);
      }
    }
    ampere::copies_commit();
  }
  __device__ __forceinline__ void start(int stage) {
    if (threadIdx.x < 32) {
      const Listed next = walk->next();
      if (threadIdx.x == 0) listed[stage] = next;
    }
    barrier();
    const int block = listed[stage].block;
    finished = block < 0;
    if (finished) return;
    const uint32_t to = tiles::shared_address(shared) + Plan::kStagesAt + stage * Plan::kStage;
    for (int i = threadIdx.x; i < kSparseBlock * kPieces; i += Plan::kThreads) {
      const int row = i / kPieces, piece = i % kPieces;
      const int key = block * kSparseBlock + row;
      const bool valid = key < tile->num_keys;
      const int64_t token = tile->key_begin + (valid ? key : 0);
      const int64_t from = (token * shape.num_kv_heads + tile->kv_head) * HS + piece * 8;
      const uint32_t place = to + piece / 8 * kHalfBytes + tiles::piece_offset(row, piece % 8);
      ampere::copy_piece(place, inputs.keys[0] + from, valid);
      ampere::copy_piece(place + Plan::kTile, inputs.keys[1] + from, valid);
    }
    ampere::copies_commit();
  }
};

#ifdef SALA_SM90A
template <class Plan, int HS, int kTensors>
struct QueryPipe<Hopper, Plan, HS, kTensors> {
  using Inputs = MappedQueries<kTensors>;
  static constexpr bool kSkips = true;
  const BlockSparseShape& shape;
  char* shared;
  Listed* listed;                                   // kStages, shared
  uint64_t *full, *empty, *rows_full, *rows_empty;  // kStages, kStages, 1, 1
  Ring<Plan::kStages> ring{};
  uint32_t tile_parity = 0;
  int num_keys = 0, group = 0;

  __device__ __forceinline__ void init() {
    for (int s = 0; s < Plan::kStages; ++s) {
      hopper::barrier_init(&full[s], 1);
      hopper::barrier_init(&empty[s], Plan::kConsumers / 32);
    }
    hopper::barrier_init(rows_full, 1);
    hopper::barrier_init(rows_empty, Plan::kConsumers / 32);
    hopper::barrier_init_done();
  }

  // One warp of the producer's warpgroup, tile after tile.
  __device__ __forceinline__ void produce(const Inputs& inputs, const QueryTile& tile, int lane) {
    hopper::barrier_wait(rows_empty, tile_parity ^ 1);
    tile_parity ^= 1;
    if (lane == 0) {
      const int bytes = shape.tile_tokens * shape.group * tiles::kRowBytes;
      hopper::barrier_expect(rows_full, kTensors * (HS / 64) * bytes);
#pragma unroll
      for (int n = 0; n < kTensors; ++n) {
#pragma unroll
        for (int half = 0; half < HS / 64; ++half) {
          hopper::copy_box(shared + n * Plan::kRows + half * Plan::kRowHalf, &inputs.rows[n],
                           64 * half, tile.kv_head * shape.group, tile.token, rows_full);
        }
      }
    }
    ListWalk walk(tile, lane, shape);
    for (bool more = true; more; ring.advance()) {
      const Listed next = walk.next();
      more = next.block >= 0;
      const int s = ring.stage;
      hopper::barrier_wait(&empty[s], (ring.round & 1) ^ 1);
      if (lane == 0) {
        listed[s] = next;
        if (more) {
          start(inputs, tile, next.block, s);
        } else {
          hopper::barrier_arrive(&full[s]);
        }
      }
      __syncwarp();
    }
  }

  __device__ __forceinline__ void begin_tile(const QueryTile& tile) {
    num_keys = tile.num_keys;
    hopper::barrier_wait(rows_full, tile_parity);
    tile_parity ^= 1;
  }
  // The next block that a member of `own` listed; blocks between are given back. `finish` gives
  // back the block that the caller still holds: called before the producer would wait for it.
  template <class Finish>
  __device__ __forceinline__ HeldBlock next(unsigned own, const Lane& at, const Finish& finish) {
    for (int ahead = 1;; ++ahead) {
      if (ahead == Plan::kStages) finish();
      hopper::barrier_wait(&full[ring.stage], ring.round & 1);
      const HeldBlock held = {listed[ring.stage], ring.stage};
      ring.advance();
      if (held.listed.members & own) {
        clear_tail(held, at);
        return held;
      }
      leave(held, at);
      if (held.listed.block < 0) return held;
    }
  }
  __device__ __forceinline__ void leave(const HeldBlock& held, const Lane& at) {
    __syncwarp();
    if (at.lane == 0) hopper::barrier_arrive(&empty[held.stage]);
  }
  // After the last reads of the tile's rows, and writes to them.
  __device__ __forceinline__ void end_tile(const Lane& at) {
    hopper::fence_async_shared();
    __syncwarp();
    if (at.lane == 0) hopper::barrier_arrive(rows_empty);
  }
  __device__ __forceinline__ char* rows(int tensor) { return shared + tensor * Plan::kRows; }
  __device__ __forceinline__ uint32_t keys(const HeldBlock& held) {
    return tiles::shared_address(shared) + Plan::kStagesAt + held.stage * Plan::kStage;
  }
  __device__ __forceinline__ uint32_t values(const HeldBlock& held) {
    return keys(held) + Plan::kTile;
  }

 private:
  __device__ __forceinline__ void start(const Inputs& inputs, const QueryTile& tile, int block,
                                        int s) {
    hopper::barrier_expect(&full[s], Plan::kStage);
    char* to = shared + Plan::kStagesAt + s * Plan::kStage;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int half = 0; half < HS / 64; ++half) {
        hopper::copy_box(to + n * Plan::kTile + half * kHalfBytes, &inputs.keys[n], 64 * half,
                         tile.kv_head, tile.key_begin + block * kSparseBlock, &full[s]);
      }
    }
  }
  // Rows past the document's end are another document's: a probability of zero does not stop their
  // infinities. Both warpgroups write the same zeros.
  __device__ __forceinline__ void clear_tail(const HeldBlock& held, const Lane& at) {
    const int rest = num_keys - held.listed.block * kSparseBlock;
    if (rest >= kSparseBlock) return;
    char* tile = shared + Plan::kStagesAt + held.stage * Plan::kStage;
    constexpr int kPieces = tiles::kRowBytes / 16;
    for (int i = at.warp * 32 + at.lane; i < (kSparseBlock - rest) * kPieces;
         i += tiles::kWarpgroup) {
#pragma unroll
      for (int half = 0; half < 2 * HS / 64; ++half) {
        *reinterpret_cast<uint4*>(tile + half * kHalfBytes + rest * tiles::kRowBytes + i * 16) =
            make_uint4(0, 0, 0, 0);
      }
    }
    hopper::fence_async_shared();
    tiles::named_barrier(1 + group, tiles::kWarpgroup);
  }
};
#endif

}  // namespace sala
