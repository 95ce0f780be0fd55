// Block-sparse attention forward (block_sparse_launch.h): per query tile and listed block, with c =
// scale log2(e) and `top` near the running maximum of each row (block_sparse_softmax.cuh),
//   p = exp2(c (q k^T - top)) where the row's token listed the block and the key is not after it
//   o = (o + p v) / sum(p)
//
// A warpgroup owns 64 rows and skips blocks that none of their tokens listed. q stays in registers:
// products of 64 x 64 with both operands in shared memory would need all of its bandwidth. The
// scores of the next block are under way while this block's are weighed.
#include <cmath>

#include "kernels/attention/block_sparse_inputs.h"
#include "kernels/attention/block_sparse_pipes.cuh"
#include "kernels/attention/block_sparse_rows.cuh"
#include "kernels/attention/block_sparse_softmax.cuh"

namespace sala {
namespace {

template <class Arch, int HS, class Pipe>
__device__ __forceinline__ void attend(Pipe& pipe, const TileRows& rows, unsigned own,
                                       const uint32_t (&q)[HS / 16][4], const Lane& at, float c,
                                       float (&out)[HS / 2], RunningSoftmax& softmax) {
  float s[32], factor[2];
  uint32_t p[4][4];
  HeldBlock now;
  bool holds = false;  // `now`, whose p is not in `out` yet
  const auto finish = [&] {
    if (!holds) return;
    Arch::begin();
    Arch::template add_by_columns<HS>(out, p, pipe.values(now), kHalfBytes, at);
    Arch::commit();
    Arch::template wait<0>(out);
    pipe.leave(now, at);
    holds = false;
  };
  while (true) {
    const HeldBlock ahead = pipe.next(own, at, finish);
    if (ahead.listed.block < 0) break;
    Arch::begin();
    Arch::template by_rows<64, HS>(s, q, pipe.keys(ahead), kHalfBytes, at);
    Arch::commit();
    bool moves;
    if (holds) {
      Arch::begin();
      Arch::template add_by_columns<HS>(out, p, pipe.values(now), kHalfBytes, at);
      Arch::commit();
      Arch::template wait<1>(s);
      moves = softmax.weigh(s, factor, rows, ahead.listed, at, c);
      Arch::template wait<0>(out);
      pipe.leave(now, at);
    } else {
      Arch::template wait<0>(s);
      moves = softmax.weigh(s, factor, rows, ahead.listed, at, c);
    }
    if (moves) {
#pragma unroll
      for (int e = 0; e < HS / 2; ++e) out[e] *= factor[(e / 2) % 2];
    }
    as_left_operand(p, s);
    now = ahead;
    holds = true;
  }
  finish();
}

template <class Arch, class Plan, int HS, class Pipe>
__device__ __forceinline__ void consume(Pipe& pipe, const QueryTile& tile,
                                        const BlockSparseShape& shape, __nv_bfloat16* o,
                                        float* lse) {
  const Lane at(threadIdx.x % tiles::kWarpgroup);
  const int first_row = threadIdx.x / tiles::kWarpgroup * 64;
  const TileRows rows(first_row + at.row, shape.group, tile);
  const unsigned own = Pipe::kSkips ? tokens_of_rows(first_row, shape.group) : ~0u;
  const uint32_t queries = tiles::shared_address(pipe.rows(0)) + first_row * tiles::kRowBytes;
  uint32_t q[HS / 16][4];
#pragma unroll
  for (int step = 0; step < HS / 16; ++step) {
    ampere::load_left(q[step], queries + step / 4 * Plan::kRowHalf, at.warp, at.lane, step % 4);
  }
  float out[HS / 2];
#pragma unroll
  for (int e = 0; e < HS / 2; ++e) out[e] = 0;
  RunningSoftmax softmax;
  attend<Arch, HS>(pipe, rows, own, q, at, shape.scale * kLog2E, out, softmax);

  float inverse[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = softmax.sum[r];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    inverse[r] = softmax.top[r] == -INFINITY ? 0.f : 1 / sum;
    if (at.lane % 4 == 0 && rows.bit[r]) {
      const int64_t head = tile.kv_head * shape.group + rows.head[r];
      lse[head * shape.num_queries + tile.token + rows.token[r]] =
          softmax.top[r] == -INFINITY ? -INFINITY : softmax.top[r] * shape.scale + logf(sum);
    }
  }
#pragma unroll
  for (int e = 0; e < HS / 2; ++e) out[e] *= inverse[(e / 2) % 2];
  store_query_rows<HS, Plan::kRowHalf>(o, pipe.rows(0), out, first_row, tile, shape, at);
  pipe.end_tile(at);
}

template <class Arch, int HS, int kStages>
__global__ void __launch_bounds__(QueryPlan<Arch, HS, 1, kStages>::kThreads, 1)
    forward_kernel(const __grid_constant__ QueryInputs<Arch, 1> inputs,
                   const __grid_constant__ BlockSparseShape shape, __nv_bfloat16* o, float* lse) {
  using Plan = QueryPlan<Arch, HS, 1, kStages>;
  run_query_tiles<Arch, Plan, HS, 1>(inputs, shape, [&](auto& pipe, const QueryTile& tile) {
    consume<Arch, Plan, HS>(pipe, tile, shape, o, lse);
  });
}

template <class Arch, int HS, int kStages>
int launch(const void* q, const void* k, const void* v, void* o, float* lse,
           const BlockSparseShape& shape, cudaStream_t stream) {
  using Plan = QueryPlan<Arch, HS, 1, kStages>;
  QueryInputs<Arch, 1> inputs;
  const void* const rows[] = {q};
  if (const int error = make_inputs(&inputs, rows, k, v, HS, shape)) return error;
  const auto kernel = forward_kernel<Arch, HS, kStages>;
  if (const int error = allow_shared(kernel, Plan::kShared)) return error;
  kernel<<<blocks_for_tiles(shape), Plan::kThreads, Plan::kShared, stream>>>(
      inputs, shape, static_cast<__nv_bfloat16*>(o), lse);
  return cudaGetLastError();
}

template <int HS>
int launch_for_device(const void* q, const void* k, const void* v, void* o, float* lse,
                      const BlockSparseShape& shape, cudaStream_t stream) {
  if (lightning_arch() == LightningArch::kHopper) {
    constexpr int kStages = HS == 64 ? 8 : 5;
    return launch<Hopper, HS, kStages>(q, k, v, o, lse, shape, stream);
  }
  return launch<Ampere, HS, 2>(q, k, v, o, lse, shape, stream);
}

}  // namespace

int launch_block_sparse_forward(const void* q, const void* k, const void* v, void* o, float* lse,
                                int64_t head_size, const BlockSparseShape& shape,
                                CUstream_st* stream) {
  if (head_size == 64) return launch_for_device<64>(q, k, v, o, lse, shape, stream);
  if (head_size == 128) return launch_for_device<128>(q, k, v, o, lse, shape, stream);
  return cudaErrorInvalidValue;
}

}  // namespace sala
