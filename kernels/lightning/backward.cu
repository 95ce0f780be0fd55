// Gradients of lightning attention's k and v, right to left. With g = d_o, R the gradient
// of the state after the tile over scale, and i, j the places in a tile of n <= 64 tokens:
//   dk = scale [ ((v g^T) o E) q + lambda^(n-1-j) v R^T ]    E_ji = lambda^(i-j) for j <= i < n
//   dv = scale [ ((k q^T) o E) g + lambda^(n-1-j) k R ]
//   R  = lambda^n R + sum_i lambda^(i+1) q_i g_i^T
// (dq has the form of the forward: o of (g, v, k).)
//
// One warpgroup makes dk, the other dv; both read R from shared memory, one by rows and one by
// columns. R lives in fp32 registers: for head size 128 each warpgroup owns 64 of its rows and
// writes them to the shared copy; for 64 each keeps all of R to itself. On Hopper the shared copy
// is doubled, so that one barrier per tile is enough.
//
// Where the time goes (H100, 32 heads x 128, bf16): memory. This kernel reads q, k, v, g and writes
// dk, dv: 48 KB per token, 2.10 ms at 128K tokens at a copy's 3.0 TB/s, 2.35 measured; with dq's
// pass over g, v, k the whole backward moves 80 KB, 3.58 ms, 3.93 measured. Nsight Compute at 32K:
// DRAM at 79 % of its peak, tensor cores at 37 %, issue slots at 27 %. What is left: one pass for
// all three gradients over saved states would move 64 KB per token (the forward would write 8 KB
// more); the two passes read k, v and g twice.
#include <type_traits>

#include "kernels/lightning/arch.cuh"
#include "kernels/lightning/inputs.h"

namespace sala {
namespace {

template <class Arch, int HS, int kStageCount>
struct Backward {
  static constexpr int kHalves = HS / 64;
  static constexpr int kStages = kStageCount;
  static constexpr int kConsumers = 2 * tiles::kWarpgroup;
  static constexpr int kThreads = kConsumers + (Arch::kHasProducer ? tiles::kWarpgroup : 0);
  static constexpr int kTile = kHalves * kHalfBytes;
  static constexpr int kStage = 4 * kTile;                  // q, k, v, g
  static constexpr int kStateHalf = HS * tiles::kRowBytes;  // HS rows x 64 columns, bf16
  static constexpr int kState = 2 * kStateHalf;             // one copy
  static constexpr int kCopies = Arch::kHasProducer ? 2 : 1;
  static constexpr int kStaging = 16 * tiles::kRowBytes;  // of one warp
  static constexpr int kStateAt = kStages * kStage;
  static constexpr int kStagingAt = kStateAt + kCopies * kState;
  // Ampere's blocks have less: there a warp stages in the rows of `own` that it alone reads.
  static constexpr bool kStagesInOwn = !Arch::kHasProducer;
  static constexpr int kShared = kStagingAt + (kStagesInOwn ? 0 : 8 * kStaging) + kAlignment;
};

// 64 rows of R, from first_row on.
template <int HS>
struct State {
  float x[HS / 2];
  const Lane& at;
  int first_row;

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < HS / 2; ++i) x[i] = 0;
  }
  __device__ __forceinline__ void scale(float factor) {
#pragma unroll
    for (int i = 0; i < HS / 2; ++i) x[i] *= factor;
  }
  __device__ __forceinline__ void add(const float* from, float factor, bool transposed) {
#pragma unroll
    for (int half = 0; half < HS / 64; ++half) {
      add_state(x + 32 * half, from, HS, first_row, 64 * half, transposed, factor, at);
    }
  }
  __device__ __forceinline__ void put(float* to, float factor) const {
#pragma unroll
    for (int half = 0; half < HS / 64; ++half) {
      put_state(to, x + 32 * half, HS, first_row, 64 * half, factor, at);
    }
  }
  __device__ __forceinline__ void round_to(char* operand, int half_stride) const {
#pragma unroll
    for (int half = 0; half < HS / 64; ++half) {
      store_fragments(operand + half * half_stride, first_row + 16 * at.warp, at, x + 32 * half, 1);
    }
  }
};

template <class Arch, class Plan, int HS, bool kMakesDk, class Pipe, class Locate>
__device__ __forceinline__ void consume(Pipe& pipe, Locate& locate, Tile tile, int num_tiles,
                                        char* shared, float* table, const LightningLine& line,
                                        const LightningStates& states, __nv_bfloat16* result) {
  constexpr int kGroup = kMakesDk ? 0 : 1;
  constexpr bool kSharesState = HS != 64;
  const int thread = threadIdx.x % tiles::kWarpgroup;
  const Lane at(thread);
  char* copies = shared + Plan::kStateAt + (kSharesState ? 0 : kGroup * Plan::kStateHalf);
  const int64_t token_stride = static_cast<int64_t>(line.num_heads) * HS;
  DecayTable decay{table, 0};
  State<HS> state{{}, at, kSharesState ? 64 * kGroup : 0};
  const auto barrier = [&] { tiles::named_barrier(1, Plan::kConsumers); };
  const auto publish = [&](int copy) {
    if constexpr (Plan::kCopies == 1) barrier();  // everybody has read the old one
    state.round_to(copies + copy % Plan::kCopies * Plan::kState, Plan::kStateHalf);
    Arch::fence_shared();
    barrier();
  };

  decay.fill(line.rate[tile.head], thread, tiles::kWarpgroup);
  barrier();
  state.clear();
  states_from_right<HS>(blockIdx.x, tile, line, states, decay,
                        [&](const float* from, float factor, bool transposed) {
                          state.add(from, factor, transposed);
                        });
  publish(0);

  for (int i = 0; i < num_tiles; ++i) {
    const int length = tile.length();
    // Before any product is under way: the compiler would wait for them all.
    state.scale(decay[length]);
    char* stage = pipe.enter(i, locate);
    pipe.template clear_behind<0, 3>(stage, length);  // q, g
    const uint32_t q = tiles::shared_address(stage), k = q + Plan::kTile;
    const uint32_t v = k + Plan::kTile, g = v + Plan::kTile;
    const uint32_t own = kMakesDk ? v : k, other = kMakesDk ? g : q, mixed = kMakesDk ? q : g;
    const uint32_t after = tiles::shared_address(copies) + i % Plan::kCopies * Plan::kState;
    float p[32], out[HS / 2];

    Arch::begin();
    Arch::template by_rows<64, HS>(p, own, other, kHalfBytes, at);  // v g^T or k q^T
    if constexpr (kMakesDk) {
      Arch::template by_rows<HS, HS>(out, own, after, Plan::kStateHalf, at);  // v R^T
    } else {
      Arch::template by_columns<HS, HS>(out, own, after, Plan::kStateHalf, at);  // k R
    }
    Arch::commit();

    uint32_t left[4][4];
    load_weighted_transpose(left, stage + (state.first_row / 64) * kHalfBytes, at,
                            [&](int j) { return decay[j + 1]; });
    Arch::begin();
    Arch::template add_by_columns<HS>(state.x, left, g, kHalfBytes, at);
    Arch::commit();

    Arch::template wait<1>(p, out);
    const float outer[2] = {decay[length - 1 - at.row], decay[length - 9 - at.row]};
#pragma unroll
    for (int e = 0; e < 32; ++e) {
      const int row = at.row + ((e / 2) % 2) * 8, column = (e / 4) * 8 + at.column + e % 2;
      p[e] *= decay[column - row];
    }
#pragma unroll
    for (int e = 0; e < HS / 2; ++e) out[e] *= outer[(e / 2) % 2];
    uint32_t inside[4][4];
    as_left_operand(inside, p);
    Arch::begin();
    Arch::template add_by_columns<HS>(out, inside, mixed, kHalfBytes, at);
    Arch::commit();
    Arch::template wait<0>(out, state.x);
    pipe.leave(i, at);

    char* staging = Plan::kStagesInOwn
                        ? stage + (kMakesDk ? 2 : 1) * Plan::kTile + at.warp * Plan::kStaging
                        : shared + Plan::kStagingAt + (kGroup * 4 + at.warp) * Plan::kStaging;
    __nv_bfloat16* rows = result + tile.begin() * token_stride + tile.head * HS;
#pragma unroll
    for (int half = 0; half < Plan::kHalves; ++half) {
      store_tokens(rows + 64 * half, token_stride, length, staging, at, out + 32 * half,
                   line.scale);
    }
    if (tile.starts_document() && (kSharesState || kGroup == 0)) {
      if (float* leaving = tile.leaving(HS, line, states)) state.put(leaving, line.scale);
    }

    if (i + 1 == num_tiles) break;
    const int head = tile.head;
    tile.previous(line);
    if (tile.ends_document()) {
      state.clear();
      if (const float* given = tile.given(HS, line, states)) {
        state.add(given, 1 / line.scale, states.given_transposed);
      }
      if (tile.head != head) {
        tiles::named_barrier(2 + kGroup, tiles::kWarpgroup);  // all have read the old table
        decay.fill(line.rate[tile.head], thread, tiles::kWarpgroup);
      }
    }
    publish(i + 1);
  }
}

template <class Arch, int HS, int kStages>
__global__ void __launch_bounds__(Backward<Arch, HS, kStages>::kThreads, 1)
    backward_kernel(const __grid_constant__ typename Arch::template Inputs<4> inputs,
                    const __grid_constant__ LightningLine line,
                    const __grid_constant__ LightningStates states, __nv_bfloat16* dk,
                    __nv_bfloat16* dv) {
  using Plan = Backward<Arch, HS, kStages>;
  extern __shared__ char raw[];
  __shared__ float tables[2][DecayTable::kSize];
  char* shared = align_shared(raw);
  const int64_t first = range_begin(blockIdx.x, line);
  const int num_tiles = static_cast<int>(range_begin(blockIdx.x + 1, line) - first);
  Tile tile;
  tile.seek(first + num_tiles - 1, line);
  Tile ahead = tile;  // the next to load
  auto locate = [&] {
    const TilePlace place = ahead.place();
    ahead.previous(line);
    return place;
  };
  const auto consume_as = [&](auto makes_dk, auto& pipe) {
    constexpr bool kMakesDk = decltype(makes_dk)::value;
    consume<Arch, Plan, HS, kMakesDk>(pipe, locate, tile, num_tiles, shared,
                                      tables[kMakesDk ? 0 : 1], line, states, kMakesDk ? dk : dv);
  };
  if constexpr (!Arch::kHasProducer) {
    typename Arch::template Pipe<4, HS, kStages> pipe{inputs, shared, Plan::kThreads, num_tiles,
                                                      line.num_heads};
    if (threadIdx.x < tiles::kWarpgroup) {
      consume_as(std::true_type{}, pipe);
    } else {
      consume_as(std::false_type{}, pipe);
    }
  } else {
#ifdef SALA_SM90A
    __shared__ uint64_t full[kStages], empty[kStages];
    typename Arch::template Pipe<4, HS, kStages> pipe{shared, full, empty, Plan::kConsumers};
    if (threadIdx.x == 0) pipe.init();
    __syncthreads();
    if (threadIdx.x >= Plan::kConsumers) {
      hopper::keep_registers<24>();
      if (threadIdx.x == Plan::kConsumers) pipe.produce(inputs, num_tiles, locate);
    } else if (threadIdx.x < tiles::kWarpgroup) {
      hopper::take_registers<240>();
      consume_as(std::true_type{}, pipe);
    } else {
      hopper::take_registers<240>();
      consume_as(std::false_type{}, pipe);
    }
#else
    __trap();  // never chosen: lightning_arch()
#endif
  }
}

template <class Arch, int HS, int kStages>
int launch(const void* const (&tensors)[4], void* dk, void* dv, const LightningStates& states,
           const LightningLine& line, cudaStream_t stream) {
  using Plan = Backward<Arch, HS, kStages>;
  typename Arch::template Inputs<4> inputs;
  if (const int error = make_inputs(&inputs, tensors, HS, line)) return error;
  const auto kernel = backward_kernel<Arch, HS, kStages>;
  if (const int error = allow_shared(kernel, Plan::kShared)) return error;
  kernel<<<line.num_ranges, Plan::kThreads, Plan::kShared, stream>>>(
      inputs, line, states, static_cast<__nv_bfloat16*>(dk), static_cast<__nv_bfloat16*>(dv));
  return cudaGetLastError();
}

template <int HS>
int launch_for_device(const void* const (&tensors)[4], void* dk, void* dv,
                      const LightningStates& states, const LightningLine& line,
                      cudaStream_t stream) {
  if (lightning_arch() == LightningArch::kHopper) {
    constexpr int kStages = HS == 64 ? 4 : 2;
    return launch<Hopper, HS, kStages>(tensors, dk, dv, states, line, stream);
  }
  static_assert(Backward<Ampere, HS, 1>::kShared <= kLeastSharedBytes);
  if (Backward<Ampere, HS, 2>::kShared <= max_shared_bytes()) {
    return launch<Ampere, HS, 2>(tensors, dk, dv, states, line, stream);
  }
  return launch<Ampere, HS, 1>(tensors, dk, dv, states, line, stream);
}

}  // namespace

int launch_lightning_backward(const void* q, const void* k, const void* v, const void* d_o,
                              void* dk, void* dv, const LightningStates& states, int64_t head_size,
                              const LightningLine& line, CUstream_st* stream) {
  const void* const tensors[] = {q, k, v, d_o};
  if (head_size == 64) return launch_for_device<64>(tensors, dk, dv, states, line, stream);
  if (head_size == 128) return launch_for_device<128>(tensors, dk, dv, states, line, stream);
  return cudaErrorInvalidValue;
}

}  // namespace sala
