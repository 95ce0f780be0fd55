// States at the borders of ranges (lightning_launch.h): one product a^T b over the tokens that the
// decay lets through. a's rows are weighed in registers; the sum needs no rescaling. The tiles of a
// border are dealt to kLightningParts blocks, as a slow head has many times the tiles of a fast
// one.
//
// Bytes: 4 HS per token and head, over min(range, 17.3 / slope) tokens: for MiniCPM-SALA's slopes
// 832 tokens on average, at most 4.4K.

#include "kernels/lightning_tiles.cuh"
#include "kernels/tensor_map.h"

namespace sala {
namespace {

using namespace hopper;

template <int HS>
struct EndStates {
  static constexpr int kHalves = HS / 64;  // also warpgroups: each has 64 rows of the sum
  static constexpr int kConsumers = kHalves * kWarpgroup;
  static constexpr int kThreads = kConsumers + 32;
  static constexpr int kTile = kHalves * kHalfBytes;
  static constexpr int kStage = 2 * kTile;
  static constexpr int kStages = HS == 64 ? 4 : 6;
  static constexpr int kBlocksPerSm = HS == 64 ? 2 : 1;
  static constexpr int kShared = kStages * kStage + 1024;
};

template <int HS, bool kFromRight>
__global__ void __launch_bounds__(EndStates<HS>::kThreads, EndStates<HS>::kBlocksPerSm)
    end_states_kernel(const __grid_constant__ CUtensorMap a_map,
                      const __grid_constant__ CUtensorMap b_map,
                      const __grid_constant__ LightningLine line, float* out) {
#ifdef SALA_SM90A
  using Plan = EndStates<HS>;
  extern __shared__ char raw[];
  char* shared = raw + ((1024 - (shared_address(raw) & 1023)) & 1023);
  __shared__ uint64_t full[Plan::kStages], empty[Plan::kStages];
  __shared__ float table[DecayTable::kSize];

  // The border between this block's range and the next, and the window of tiles beside it.
  const int64_t border = range_begin(blockIdx.x + 1, line);
  Tile tile;
  tile.seek(border, line);
  if (tile.starts_document()) return;
  DecayTable decay{table, 0};
  const float rate = line.decay[tile.head];
  int64_t span;
  if (kFromRight) {
    span = min(range_begin(blockIdx.x + 2, line), tile.line_place(tile.doc_last_tile, line) + 1) -
           border;
  } else {
    span = border - max(range_begin(blockIdx.x, line), tile.line_place(tile.doc_first_tile, line));
  }
  const Window window(rate, span);
  const int part = blockIdx.y;
  if (part >= window.num_parts) return;
  // This block's tiles: part, part + num_parts, ... away from the border.
  const int num_tiles = (window.num_tiles - part + window.num_parts - 1) / window.num_parts;
  const auto distance_of = [&](int i) { return (part + i * window.num_parts) * kTileTokens; };
  const int border_token = tile.begin();

  if (threadIdx.x == 0) {
    for (int s = 0; s < Plan::kStages; ++s) {
      barrier_init(&full[s], 1);
      barrier_init(&empty[s], Plan::kConsumers / 32);
    }
    barrier_init_done();
  }
  decay.fill(rate, threadIdx.x, Plan::kThreads);
  __syncthreads();

  if (threadIdx.x >= Plan::kConsumers) {
    if (threadIdx.x != Plan::kConsumers) return;
    for (int i = 0; i < num_tiles; ++i) {
      const int s = i % Plan::kStages;
      if (i >= Plan::kStages) barrier_wait(&empty[s], (i / Plan::kStages - 1) & 1);
      barrier_expect(&full[s], Plan::kStage);
      char* stage = shared + s * Plan::kStage;
      const int token =
          border_token + (kFromRight ? distance_of(i) : -kTileTokens - distance_of(i));
      for (int half = 0; half < Plan::kHalves; ++half) {
        copy_box(stage + half * kHalfBytes, &a_map, 64 * half, tile.head, token, &full[s]);
        copy_box(stage + Plan::kTile + half * kHalfBytes, &b_map, 64 * half, tile.head, token,
                 &full[s]);
      }
    }
    return;
  }

  const int group = threadIdx.x / kWarpgroup;
  const Lane at(threadIdx.x % kWarpgroup);
  float sum[HS / 2];  // 64 rows x HS columns
#pragma unroll
  for (int e = 0; e < HS / 2; ++e) sum[e] = 0;
  const auto weight = [&](int i, int j) {  // of token j of tile i
    const float beyond = decay.far(static_cast<float>(distance_of(i)));
    if (!kFromRight) return beyond * decay[kTileTokens - 1 - j];
    return distance_of(i) + j < tile.doc_end - border_token ? beyond * decay[j + 1] : 0.f;
  };
  for (int i = 0; i < num_tiles; i += 2) {  // two tiles at a time: the products' latency counts
    const int last = min(i + 1, num_tiles - 1);
    uint32_t left[2][4][4];
    const char* stages[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int at_tile = n == 0 ? i : last, s = at_tile % Plan::kStages;
      const float share = i + n < num_tiles ? 1 : 0;  // an odd last tile is taken with nothing
      stages[n] = shared + s * Plan::kStage;
      barrier_wait(&full[s], (at_tile / Plan::kStages) & 1);
      load_weighted_transpose(left[n], stages[n] + group * kHalfBytes, at,
                              [&](int j) { return share * weight(at_tile, j); });
    }
    products_begin();
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const uint32_t b = shared_address(stages[n]) + Plan::kTile;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        Product<HS>::template run<true>(sum, left[n][k],
                                        columns_descriptor(b + k * 2048, kHalfBytes), true);
      }
    }
    products_commit();
    products_wait<0>();
    pin(sum);
    if (at.lane == 0) {
      barrier_arrive(&empty[i % Plan::kStages]);
      if (last != i) barrier_arrive(&empty[last % Plan::kStages]);
    }
  }
  float* state = out + (static_cast<int64_t>(blockIdx.x) * kLightningParts + part) * HS * HS;
#pragma unroll
  for (int half = 0; half < Plan::kHalves; ++half) {
    put_state(state, sum + 32 * half, HS, 64 * group, 64 * half, 1, at);
  }
#endif
}

template <int HS, bool kFromRight>
int launch(const void* a, const void* b, float* out, const LightningLine& line,
           cudaStream_t stream) {
  using Plan = EndStates<HS>;
  CUtensorMap a_map, b_map;
  if (const int error = make_tile_map(&a_map, a, line.num_tokens, line.num_heads, HS)) return error;
  if (const int error = make_tile_map(&b_map, b, line.num_tokens, line.num_heads, HS)) return error;
  const auto kernel = end_states_kernel<HS, kFromRight>;
  if (const cudaError_t error = cudaFuncSetAttribute(
          kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Plan::kShared)) {
    return error;
  }
  const dim3 blocks(line.num_ranges - 1, kLightningParts);
  kernel<<<blocks, Plan::kThreads, Plan::kShared, stream>>>(a_map, b_map, line, out);
  return cudaGetLastError();
}

}  // namespace

int lightning_end_states(const void* a, const void* b, float* out, int64_t head_size,
                         bool from_right, const LightningLine& line, CUstream_st* stream) {
  if (line.num_ranges < 2) return cudaSuccess;
  if (head_size == 64) {
    return from_right ? launch<64, true>(a, b, out, line, stream)
                      : launch<64, false>(a, b, out, line, stream);
  }
  return from_right ? launch<128, true>(a, b, out, line, stream)
                    : launch<128, false>(a, b, out, line, stream);
}

}  // namespace sala
