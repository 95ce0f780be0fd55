// Gradient of block-sparse attention's queries (block_sparse_launch.h): tiles and walk of the
// forward; per listed block, with p from the saved log-sum-exp and delta = sum(d_o * o),
//   ds = p (d_o v^T - delta),   dq = scale sum(ds k)
// Three products per block and no running maximum: dq only grows. q is a register operand as in the
// forward at head size 128, d_o one in shared memory: there is no room for both.
#include "kernels/attention/block_sparse_inputs.h"
#include "kernels/attention/block_sparse_rows.cuh"

namespace sala {
namespace {

constexpr int kWarpsPerBlock = 8;

// One warp per (token, head).
template <int HS>
__global__ void __launch_bounds__(32 * kWarpsPerBlock)
    stats_kernel(const __nv_bfloat16* o, const __nv_bfloat16* d_o, const float* lse, float2* stats,
                 int num_queries, int num_heads) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / 32;
  if (row >= static_cast<int64_t>(num_queries) * num_heads) return;
  const int lane = threadIdx.x % 32;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < HS / 64; ++i) {
    const int64_t at = (row * HS + i * 64) / 2 + lane;
    const float2 a = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162*>(o)[at]);
    const float2 b = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162*>(d_o)[at]);
    sum += a.x * b.x + a.y * b.y;
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (lane == 0) {
    const int64_t token = row / num_heads, head = row % num_heads;
    const float log_sum = lse[head * num_queries + token];
    // A row that saw nothing: its products are -inf, and must stay so when this is taken off.
    stats[row] = make_float2(log_sum == -INFINITY ? 0.f : log_sum * kLog2E, sum);
  }
}

template <class Arch, class Plan, int HS, class Pipe>
__device__ __forceinline__ void consume(Pipe& pipe, const QueryTile& tile,
                                        const BlockSparseShape& shape, const float2* stats,
                                        __nv_bfloat16* dq) {
  const Lane at(threadIdx.x % tiles::kWarpgroup);
  const int first_row = threadIdx.x / tiles::kWarpgroup * 64;
  const TileRows rows(first_row + at.row, shape.group, tile);
  const unsigned own = Pipe::kSkips ? tokens_of_rows(first_row, shape.group) : ~0u;
  const uint32_t queries = tiles::shared_address(pipe.rows(0)) + first_row * tiles::kRowBytes;
  const uint32_t d_o = queries + Plan::kRows;
  // At head size 64 ptxas 13.0 would keep q in the registers of ds, and lose it.
  constexpr bool kHoldsQ = HS == 128;
  uint32_t q[HS / 16][4];
  if constexpr (kHoldsQ) {
#pragma unroll
    for (int step = 0; step < HS / 16; ++step) {
      ampere::load_left(q[step], queries + step / 4 * Plan::kRowHalf, at.warp, at.lane, step % 4);
    }
  }
  float log_sum[2] = {0, 0}, delta[2] = {0, 0};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (rows.bit[r] == 0) continue;
    const int64_t token = tile.token + rows.token[r];
    const float2 here =
        stats[(token * shape.num_kv_heads + tile.kv_head) * shape.group + rows.head[r]];
    log_sum[r] = here.x;
    delta[r] = here.y;
  }
  const float c = shape.scale * kLog2E;
  float out[HS / 2], s[32], dp[32];
  uint32_t ds[4][4];
#pragma unroll
  for (int e = 0; e < HS / 2; ++e) out[e] = 0;

  HeldBlock before{{-1, 0}, 0};
  const auto finish = [&] {
    Arch::template wait<0>(out);
    if (before.listed.block >= 0) pipe.leave(before, at);
    before.listed.block = -1;
  };
  while (true) {
    const HeldBlock now = pipe.next(own, at, finish);
    if (now.listed.block < 0) break;
    Arch::begin();
    if constexpr (kHoldsQ) {
      Arch::template by_rows<64, HS>(s, q, pipe.keys(now), kHalfBytes, at);
    } else {
      Arch::template by_rows<64, HS>(s, queries, pipe.keys(now), kHalfBytes, at, Plan::kRowHalf);
    }
    Arch::commit();
    Arch::begin();
    Arch::template by_rows<64, HS>(dp, d_o, pipe.values(now), kHalfBytes, at, Plan::kRowHalf);
    Arch::commit();
    Arch::template wait<1>(s, out);
    if (before.listed.block >= 0) pipe.leave(before, at);
    const bool seen = hide_keys(s, rows, now.listed, at);
#pragma unroll
    for (int e = 0; e < 32; ++e) {
      s[e] = seen ? exp2_fast(s[e] * c - log_sum[(e / 2) % 2]) : 0.f;
    }
    Arch::template wait<0>(dp);
#pragma unroll
    for (int e = 0; e < 32; ++e) dp[e] = s[e] * (dp[e] - delta[(e / 2) % 2]);
    as_left_operand(ds, dp);
    Arch::begin();
    Arch::template add_by_columns<HS>(out, ds, pipe.keys(now), kHalfBytes, at);
    Arch::commit();
    before = now;
  }
  finish();
#pragma unroll
  for (int e = 0; e < HS / 2; ++e) out[e] *= shape.scale;
  store_query_rows<HS, Plan::kRowHalf>(dq, pipe.rows(0), out, first_row, tile, shape, at);
  pipe.end_tile(at);
}

template <class Arch, int HS, int kStages>
__global__ void __launch_bounds__(QueryPlan<Arch, HS, 2, kStages>::kThreads, 1)
    dq_kernel(const __grid_constant__ QueryInputs<Arch, 2> inputs,
              const __grid_constant__ BlockSparseShape shape, const float2* stats,
              __nv_bfloat16* dq) {
  using Plan = QueryPlan<Arch, HS, 2, kStages>;
  run_query_tiles<Arch, Plan, HS, 2>(inputs, shape, [&](auto& pipe, const QueryTile& tile) {
    consume<Arch, Plan, HS>(pipe, tile, shape, stats, dq);
  });
}

template <class Arch, int HS, int kStages>
int launch(const void* q, const void* k, const void* v, const void* d_o, const float* stats,
           void* dq, const BlockSparseShape& shape, cudaStream_t stream) {
  using Plan = QueryPlan<Arch, HS, 2, kStages>;
  QueryInputs<Arch, 2> inputs;
  const void* const rows[] = {q, d_o};
  if (const int error = make_inputs(&inputs, rows, k, v, HS, shape)) return error;
  const auto kernel = dq_kernel<Arch, HS, kStages>;
  if (const int error = allow_shared(kernel, Plan::kShared)) return error;
  kernel<<<blocks_for_tiles(shape), Plan::kThreads, Plan::kShared, stream>>>(
      inputs, shape, reinterpret_cast<const float2*>(stats), static_cast<__nv_bfloat16*>(dq));
  return cudaGetLastError();
}

template <int HS>
int launch_for_device(const void* q, const void* k, const void* v, const void* d_o,
                      const float* stats, void* dq, const BlockSparseShape& shape,
                      cudaStream_t stream) {
  if (lightning_arch() == LightningArch::kHopper) {
    constexpr int kStages = HS == 64 ? 8 : 5;
    return launch<Hopper, HS, kStages>(q, k, v, d_o, stats, dq, shape, stream);
  }
  return launch<Ampere, HS, 2>(q, k, v, d_o, stats, dq, shape, stream);
}

}  // namespace

// dq has the largest tiles.
bool block_sparse_kernels_fit(int64_t head_size) {
  if (lightning_arch() == LightningArch::kNone) return false;
  if (lightning_arch() == LightningArch::kHopper) return true;
  const int num_bytes = head_size == 64 ? QueryPlan<Ampere, 64, 2, 2>::kShared
                                        : QueryPlan<Ampere, 128, 2, 2>::kShared;
  return max_shared_bytes() >= num_bytes;
}

int launch_block_sparse_stats(const void* o, const void* d_o, const float* lse, float* stats,
                              int64_t head_size, const BlockSparseShape& shape,
                              CUstream_st* stream) {
  const int num_heads = shape.num_kv_heads * shape.group;
  const int64_t num_rows = static_cast<int64_t>(shape.num_queries) * num_heads;
  const int num_blocks = static_cast<int>((num_rows + kWarpsPerBlock - 1) / kWarpsPerBlock);
  const auto kernel = head_size == 64 ? stats_kernel<64> : stats_kernel<128>;
  kernel<<<num_blocks, 32 * kWarpsPerBlock, 0, stream>>>(
      static_cast<const __nv_bfloat16*>(o), static_cast<const __nv_bfloat16*>(d_o), lse,
      reinterpret_cast<float2*>(stats), shape.num_queries, num_heads);
  return cudaGetLastError();
}

int launch_block_sparse_dq(const void* q, const void* k, const void* v, const void* d_o,
                           const float* stats, void* dq, int64_t head_size,
                           const BlockSparseShape& shape, CUstream_st* stream) {
  if (head_size == 64) return launch_for_device<64>(q, k, v, d_o, stats, dq, shape, stream);
  if (head_size == 128) return launch_for_device<128>(q, k, v, d_o, stats, dq, shape, stream);
  return cudaErrorInvalidValue;
}

}  // namespace sala
