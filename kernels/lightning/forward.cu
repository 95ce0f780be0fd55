// Lightning attention forward. With i, j the places in a tile of n <= 64 tokens, S the state before
// it (HS x HS, rows features of k, columns features of v):
//   o = scale [ ((q k^T) o D) v + lambda^(i+1) q S ],   D_ij = lambda^(i-j) for i >= j
//   S = lambda^n S + sum_j lambda^(n-1-j) k_j v_j^T
//
// A block walks one range of the line of tiles (launch.h). A warpgroup owns 64 columns of
// v: its half of S stays in fp32 registers and is rounded to bf16 in shared memory once per tile as
// an operand, so that warpgroups share q and k tiles and nothing else.
//
// Where the time goes (H100, 32 heads x 128, bf16; Nsight Compute at 32K tokens): memory. The floor
// is q, k, v read and o written once, 32 KB per token; at 128K tokens 1.43 ms at the 3.0 TB/s of a
// copy, 1.49 ms measured. DRAM works at 83 % of its peak, the tensor cores at 41 % (6.3 MFLOP per
// tile and head, q k^T counted once; both warpgroups do it), issue slots at 41 %; exponentials cost
// nothing, as the decays of a head are tabled once per block. What is left: the border states
// (0.04 ms at any length: slow heads read up to 4.4K tokens) and, below 16K tokens, filling the
// pipeline (8K: 0.137 ms against 0.09). For head size 64 a tile is half the bytes at nearly the
// same latency: 90 % of the copy's speed at 128K, 77 % at 32K.
#include "kernels/lightning/arch.cuh"
#include "kernels/lightning/inputs.h"

namespace sala {
namespace {

template <class Arch, int HS, int kStageCount>
struct Forward {
  static constexpr int kHalves = HS / 64;  // also warpgroups that multiply
  static constexpr int kStages = kStageCount;
  static constexpr int kConsumers = kHalves * tiles::kWarpgroup;
  static constexpr int kThreads = kConsumers + (Arch::kHasProducer ? tiles::kWarpgroup : 0);
  static constexpr int kBlocksPerSm = lightning_blocks_per_sm(HS);
  static constexpr int kTile = kHalves * kHalfBytes;
  static constexpr int kStage = 3 * kTile;                // q, k, v
  static constexpr int kState = HS * tiles::kRowBytes;    // of one warpgroup, bf16
  static constexpr int kStaging = 16 * tiles::kRowBytes;  // of one warp
  static constexpr int kStateAt = kStages * kStage;
  static constexpr int kStagingAt = kStateAt + kHalves * kState;
  static constexpr int kShared = kStagingAt + kHalves * 4 * kStaging + kAlignment;
};

// S of one warpgroup: HS rows, 64 of the columns.
template <int HS>
struct State {
  static constexpr int kHalves = HS / 64;
  float x[kHalves][32];
  const Lane& at;
  int group;

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < kHalves; ++m) {
#pragma unroll
      for (int i = 0; i < 32; ++i) x[m][i] = 0;
    }
  }
  __device__ __forceinline__ void scale(float factor) {
#pragma unroll
    for (int m = 0; m < kHalves; ++m) {
#pragma unroll
      for (int i = 0; i < 32; ++i) x[m][i] *= factor;
    }
  }
  __device__ __forceinline__ void add(const float* from, float factor, bool transposed) {
#pragma unroll
    for (int m = 0; m < kHalves; ++m) {
      add_state(x[m], from, HS, 64 * m, 64 * group, transposed, factor, at);
    }
  }
  __device__ __forceinline__ void put(float* to) const {
#pragma unroll
    for (int m = 0; m < kHalves; ++m) put_state(to, x[m], HS, 64 * m, 64 * group, 1, at);
  }
  // As an operand in shared memory: rows are features of k.
  __device__ __forceinline__ void round_to(char* operand) const {
#pragma unroll
    for (int m = 0; m < kHalves; ++m) {
      store_fragments(operand, 64 * m + 16 * at.warp, at, x[m], 1);
    }
  }
};

template <class Arch, class Plan, int HS, class Pipe, class Locate>
__device__ __forceinline__ void consume(Pipe& pipe, Locate& locate, Tile tile, int num_tiles,
                                        char* shared, float* tables, const LightningLine& line,
                                        const LightningStates& states, __nv_bfloat16* o) {
  const int group = threadIdx.x / tiles::kWarpgroup, thread = threadIdx.x % tiles::kWarpgroup;
  const Lane at(thread);
  char* state_operand = shared + Plan::kStateAt + group * Plan::kState;
  char* staging = shared + Plan::kStagingAt + (group * 4 + at.warp) * Plan::kStaging;
  const int64_t token_stride = static_cast<int64_t>(line.num_heads) * HS;
  DecayTable decay{tables + group * DecayTable::kSize, 0};
  State<HS> state{{}, at, group};
  const auto group_barrier = [&] {
    tiles::named_barrier(Plan::kHalves == 1 ? 1 : 1 + group, tiles::kWarpgroup);
  };
  const auto publish = [&] {
    state.round_to(state_operand);
    Arch::fence_shared();
    group_barrier();
  };

  decay.fill(line.rate[tile.head], thread, tiles::kWarpgroup);
  group_barrier();
  state.clear();
  states_from_left<HS>(blockIdx.x, tile, line, states, decay,
                       [&](const float* from, float factor, bool transposed) {
                         state.add(from, factor, transposed);
                       });
  publish();

  for (int i = 0; i < num_tiles; ++i) {
    const int length = tile.length();
    // Before any product is under way: the compiler would wait for them all.
    state.scale(decay[length]);
    char* stage = pipe.enter(i, locate);
    pipe.template clear_behind<1, 2>(stage, length);  // k, v
    const uint32_t q = tiles::shared_address(stage), k = q + Plan::kTile;
    const uint32_t v = k + Plan::kTile + group * kHalfBytes;
    float p[32], out[32];

    Arch::begin();
    Arch::template by_rows<64, HS>(p, q, k, kHalfBytes, at);
    Arch::template by_columns<64, HS>(out, q, tiles::shared_address(state_operand), 0, at);
    Arch::commit();

    uint32_t left[Plan::kHalves][4][4];
#pragma unroll
    for (int m = 0; m < Plan::kHalves; ++m) {
      load_weighted_transpose(left[m], stage + Plan::kTile + m * kHalfBytes, at,
                              [&](int j) { return decay[length - 1 - j]; });
    }
    Arch::begin();
#pragma unroll
    for (int m = 0; m < Plan::kHalves; ++m) {
      Arch::template add_by_columns<64>(state.x[m], left[m], v, 0, at);
    }
    Arch::commit();

    Arch::template wait<1>(p, out);
    const float inter[2] = {decay[at.row + 1], decay[at.row + 9]};
#pragma unroll
    for (int e = 0; e < 32; ++e) {
      const int row = at.row + ((e / 2) % 2) * 8, column = (e / 4) * 8 + at.column + e % 2;
      p[e] *= decay[row - column];
      out[e] *= inter[(e / 2) % 2];
    }
    uint32_t inside[4][4];
    as_left_operand(inside, p);
    Arch::begin();
    Arch::template add_by_columns<64>(out, inside, v, 0, at);
    Arch::commit();
    Arch::template wait<0>(out, state.x[0], state.x[Plan::kHalves - 1]);
    pipe.leave(i, at);

    store_tokens(o + tile.begin() * token_stride + tile.head * HS + 64 * group, token_stride,
                 length, staging, at, out, line.scale);
    if (tile.ends_document()) {
      if (float* leaving = tile.leaving(HS, line, states)) state.put(leaving);
    }

    const int head = tile.head;
    tile.next(line);
    group_barrier();  // every warp has read the old state and the old table
    if (i + 1 == num_tiles) break;
    if (tile.starts_document()) {
      state.clear();
      if (const float* given = tile.given(HS, line, states)) {
        state.add(given, 1, states.given_transposed);
      }
      if (tile.head != head) decay.fill(line.rate[tile.head], thread, tiles::kWarpgroup);
    }
    publish();
  }
}

template <class Arch, int HS, int kStages>
__global__ void __launch_bounds__(Forward<Arch, HS, kStages>::kThreads,
                                  Forward<Arch, HS, kStages>::kBlocksPerSm)
    forward_kernel(const __grid_constant__ typename Arch::template Inputs<3> inputs,
                   const __grid_constant__ LightningLine line,
                   const __grid_constant__ LightningStates states, __nv_bfloat16* o) {
  using Plan = Forward<Arch, HS, kStages>;
  extern __shared__ char raw[];
  __shared__ float tables[Plan::kHalves * DecayTable::kSize];
  char* shared = align_shared(raw);
  const int64_t first = range_begin(blockIdx.x, line);
  const int num_tiles = static_cast<int>(range_begin(blockIdx.x + 1, line) - first);
  Tile tile;
  tile.seek(first, line);
  Tile ahead = tile;  // the next to load
  auto locate = [&] {
    const TilePlace place = ahead.place();
    ahead.next(line);
    return place;
  };
  if constexpr (!Arch::kHasProducer) {
    typename Arch::template Pipe<3, HS, kStages> pipe{inputs, shared, Plan::kThreads, num_tiles,
                                                      line.num_heads};
    consume<Arch, Plan, HS>(pipe, locate, tile, num_tiles, shared, tables, line, states, o);
  } else {
#ifdef SALA_SM90A
    __shared__ uint64_t full[kStages], empty[kStages];
    typename Arch::template Pipe<3, HS, kStages> pipe{shared, full, empty, Plan::kConsumers};
    if (threadIdx.x == 0) pipe.init();
    __syncthreads();
    if (threadIdx.x >= Plan::kConsumers) {
      hopper::keep_registers<HS == 64 ? 40 : 24>();
      if (threadIdx.x == Plan::kConsumers) pipe.produce(inputs, num_tiles, locate);
    } else {
      hopper::take_registers<HS == 64 ? 216 : 240>();
      consume<Arch, Plan, HS>(pipe, locate, tile, num_tiles, shared, tables, line, states, o);
    }
#else
    __trap();  // never chosen: lightning_arch()
#endif
  }
}

template <class Arch, int HS, int kStages>
int launch(const void* const (&tensors)[3], void* o, const LightningStates& states,
           const LightningLine& line, cudaStream_t stream) {
  using Plan = Forward<Arch, HS, kStages>;
  typename Arch::template Inputs<3> inputs;
  if (const int error = make_inputs(&inputs, tensors, HS, line)) return error;
  const auto kernel = forward_kernel<Arch, HS, kStages>;
  if (const int error = allow_shared(kernel, Plan::kShared)) return error;
  kernel<<<line.num_ranges, Plan::kThreads, Plan::kShared, stream>>>(
      inputs, line, states, static_cast<__nv_bfloat16*>(o));
  return cudaGetLastError();
}

template <int HS>
int launch_for_device(const void* const (&tensors)[3], void* o, const LightningStates& states,
                      const LightningLine& line, cudaStream_t stream) {
  if (lightning_arch() == LightningArch::kHopper) {
    return launch<Hopper, HS, 3>(tensors, o, states, line, stream);
  }
  static_assert(Forward<Ampere, HS, 1>::kShared <= kLeastSharedBytes);
  if (Forward<Ampere, HS, 2>::kShared <= max_shared_bytes()) {
    return launch<Ampere, HS, 2>(tensors, o, states, line, stream);
  }
  return launch<Ampere, HS, 1>(tensors, o, states, line, stream);
}

}  // namespace

int launch_lightning_forward(const void* q, const void* k, const void* v, void* o,
                             const LightningStates& states, int64_t head_size,
                             const LightningLine& line, CUstream_st* stream) {
  const void* const tensors[] = {q, k, v};
  if (head_size == 64) return launch_for_device<64>(tensors, o, states, line, stream);
  if (head_size == 128) return launch_for_device<128>(tensors, o, states, line, stream);
  return cudaErrorInvalidValue;
}

}  // namespace sala
