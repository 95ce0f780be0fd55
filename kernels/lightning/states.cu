// States at the borders of ranges (launch.h): one product a^T b over the tokens that the
// decay lets through. a's rows are weighed in registers; the sum needs no rescaling. The tiles of a
// border are dealt to kLightningParts blocks, as a slow head has many times the tiles of a fast
// one.
//
// Bytes: 4 HS per token and head, over min(range, 17.3 / slope) tokens: for MiniCPM-SALA's slopes
// 906 tokens on average, in whole tiles, at most 4.4K.

#include "kernels/lightning/arch.cuh"
#include "kernels/lightning/inputs.h"

namespace sala {
namespace {

template <class Arch, int HS>
struct EndStates {
  static constexpr int kHalves = HS / 64;  // also warpgroups: each has 64 rows of the sum
  static constexpr int kConsumers = kHalves * tiles::kWarpgroup;
  static constexpr int kThreads = kConsumers + (Arch::kHasProducer ? 32 : 0);
  static constexpr int kBlocksPerSm = lightning_blocks_per_sm(HS);
  static constexpr int kTile = kHalves * kHalfBytes;
  static constexpr int kStages = Arch::kHasProducer ? (HS == 64 ? 4 : 6) : 2;
  static constexpr int kShared = kStages * 2 * kTile + kAlignment;
};

template <class Arch, int HS, bool kFromRight, class Pipe, class Locate, class DistanceOf>
__device__ __forceinline__ void consume(Pipe& pipe, Locate& locate, const Tile& tile, int num_tiles,
                                        const DistanceOf& distance_of, const DecayTable& decay,
                                        float* out) {
  using Plan = EndStates<Arch, HS>;
  constexpr int kTogether = Arch::kHasProducer ? 2 : 1;  // tiles per wait for the products
  const int group = threadIdx.x / tiles::kWarpgroup;
  const Lane at(threadIdx.x % tiles::kWarpgroup);
  const int tokens_right = tile.doc_end - tile.begin();
  const auto weight = [&](int i, int j) {  // of token j of tile i
    const float beyond = decay.far(static_cast<float>(distance_of(i)));
    return beyond * decay[kFromRight ? j + 1 : kTileTokens - 1 - j];
  };
  float sum[HS / 2];  // 64 rows x HS columns
#pragma unroll
  for (int e = 0; e < HS / 2; ++e) sum[e] = 0;

  for (int i = 0; i < num_tiles; i += kTogether) {
    uint32_t left[kTogether][4][4];
    char* stages[kTogether];
#pragma unroll
    for (int n = 0; n < kTogether; ++n) {
      const int at_tile = min(i + n, num_tiles - 1);
      const float share = i + n < num_tiles ? 1 : 0;  // an odd last tile is taken with nothing
      stages[n] = pipe.enter(at_tile, locate);
      if constexpr (kFromRight) {  // only a document's last tile is shorter than others
        // Entered a second time it is clear, and others read it.
        const int tokens = i + n < num_tiles ? tokens_right - distance_of(at_tile) : kTileTokens;
        pipe.template clear_behind<0, 1>(stages[n], min(kTileTokens, tokens));
      }
      load_weighted_transpose(left[n], stages[n] + group * kHalfBytes, at,
                              [&](int j) { return share * weight(at_tile, j); });
    }
    Arch::begin();
#pragma unroll
    for (int n = 0; n < kTogether; ++n) {
      Arch::template add_by_columns<HS>(
          sum, left[n], tiles::shared_address(stages[n]) + Plan::kTile, kHalfBytes, at);
    }
    Arch::commit();
    Arch::template wait<0>(sum);
    for (int n = 0; n < kTogether && i + n < num_tiles; ++n) pipe.leave(i + n, at);
  }
#pragma unroll
  for (int half = 0; half < Plan::kHalves; ++half) {
    put_state(out, sum + 32 * half, HS, 64 * group, 64 * half, 1, at);
  }
}

template <class Arch, int HS, bool kFromRight>
__global__ void __launch_bounds__(EndStates<Arch, HS>::kThreads, EndStates<Arch, HS>::kBlocksPerSm)
    end_states_kernel(const __grid_constant__ typename Arch::template Inputs<2> inputs,
                      const __grid_constant__ LightningLine line, float* out) {
  using Plan = EndStates<Arch, HS>;
  extern __shared__ char raw[];
  __shared__ float table[DecayTable::kSize];
  char* shared = align_shared(raw);

  // The border between this block's range and the next, and the window of tiles beside it.
  const int64_t border = range_begin(blockIdx.x + 1, line);
  Tile tile;
  tile.seek(border, line);
  if (tile.starts_document()) return;
  int64_t span;
  if (kFromRight) {
    span = min(range_begin(blockIdx.x + 2, line), tile.line_place(tile.doc_last_tile, line) + 1) -
           border;
  } else {
    span = border - max(range_begin(blockIdx.x, line), tile.line_place(tile.doc_first_tile, line));
  }
  const Window window(line.rate[tile.head], span);
  const int part = blockIdx.y;
  if (part >= window.num_parts) return;
  // This block's tiles: part, part + num_parts, ... away from the border.
  const int num_tiles = (window.num_tiles - part + window.num_parts - 1) / window.num_parts;
  const auto distance_of = [&](int i) { return (part + i * window.num_parts) * kTileTokens; };
  int ahead = 0;  // the next to load
  auto locate = [&] {
    const int distance = distance_of(ahead++);
    const int token = tile.begin() + (kFromRight ? distance : -kTileTokens - distance);
    return TilePlace{token, tile.head, min(kTileTokens, tile.doc_end - token)};
  };
  DecayTable decay{table, 0};
  decay.fill(line.rate[tile.head], threadIdx.x, Plan::kThreads);
  float* state = out + (static_cast<int64_t>(blockIdx.x) * kLightningParts + part) * HS * HS;

  if constexpr (!Arch::kHasProducer) {
    __syncthreads();
    typename Arch::template Pipe<2, HS, Plan::kStages> pipe{inputs, shared, Plan::kThreads,
                                                            num_tiles, line.num_heads};
    consume<Arch, HS, kFromRight>(pipe, locate, tile, num_tiles, distance_of, decay, state);
  } else {
#ifdef SALA_SM90A
    __shared__ uint64_t full[Plan::kStages], empty[Plan::kStages];
    typename Arch::template Pipe<2, HS, Plan::kStages> pipe{shared, full, empty, Plan::kConsumers};
    if (threadIdx.x == 0) pipe.init();
    __syncthreads();
    if (threadIdx.x < Plan::kConsumers) {
      consume<Arch, HS, kFromRight>(pipe, locate, tile, num_tiles, distance_of, decay, state);
    } else if (threadIdx.x == Plan::kConsumers) {
      pipe.produce(inputs, num_tiles, locate);
    }
#else
    __trap();  // never chosen: lightning_arch()
#endif
  }
}

template <class Arch, int HS, bool kFromRight>
int launch(const void* const (&tensors)[2], float* out, const LightningLine& line,
           cudaStream_t stream) {
  using Plan = EndStates<Arch, HS>;
  typename Arch::template Inputs<2> inputs;
  if (const int error = make_inputs(&inputs, tensors, HS, line)) return error;
  const auto kernel = end_states_kernel<Arch, HS, kFromRight>;
  if (const int error = allow_shared(kernel, Plan::kShared)) return error;
  const dim3 blocks(line.num_ranges - 1, kLightningParts);
  kernel<<<blocks, Plan::kThreads, Plan::kShared, stream>>>(inputs, line, out);
  return cudaGetLastError();
}

template <class Arch>
int launch_on(const void* const (&tensors)[2], float* out, int64_t HS, bool from_right,
              const LightningLine& line, cudaStream_t stream) {
  if (HS == 64) {
    return from_right ? launch<Arch, 64, true>(tensors, out, line, stream)
                      : launch<Arch, 64, false>(tensors, out, line, stream);
  }
  return from_right ? launch<Arch, 128, true>(tensors, out, line, stream)
                    : launch<Arch, 128, false>(tensors, out, line, stream);
}

}  // namespace

int launch_lightning_end_states(const void* a, const void* b, float* out, int64_t head_size,
                                bool from_right, const LightningLine& line, CUstream_st* stream) {
  if (line.num_ranges < 2) return cudaSuccess;
  const void* const tensors[] = {a, b};
  return lightning_arch() == LightningArch::kHopper
             ? launch_on<Hopper>(tensors, out, head_size, from_right, line, stream)
             : launch_on<Ampere>(tensors, out, head_size, from_right, line, stream);
}

}  // namespace sala
