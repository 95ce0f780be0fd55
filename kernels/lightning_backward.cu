// Gradients of lightning attention's k and v on Hopper, right to left. With g = d_o, R the gradient
// of the state after the tile over scale, and i, j the places in a tile of n <= 64 tokens:
//   dk = scale [ ((v g^T) o E) q + lambda^(n-1-j) v R^T ]    E_ji = lambda^(i-j) for j <= i < n
//   dv = scale [ ((k q^T) o E) g + lambda^(n-1-j) k R ]
//   R  = lambda^n R + sum_i lambda^(i+1) q_i g_i^T
// (dq has the form of the forward: o of (g, v, k).)
//
// One warpgroup makes dk, the other dv; both read R from shared memory, one by rows and one by
// columns. R lives in fp32 registers: for head size 128 each warpgroup owns 64 of its rows and
// writes them to the shared copy; for 64 each keeps all of R to itself. The shared copy is doubled,
// so that one barrier per tile is enough.

#include "kernels/lightning_tiles.cuh"
#include "kernels/tensor_map.h"

namespace sala {
namespace {

using namespace hopper;

template <int HS>
struct Backward {
  static constexpr int kHalves = HS / 64;
  static constexpr int kConsumers = 2 * kWarpgroup;
  static constexpr int kThreads = kConsumers + kWarpgroup;
  static constexpr int kTile = kHalves * kHalfBytes;
  static constexpr int kStage = 4 * kTile;  // q, k, v, g
  static constexpr int kStages = HS == 64 ? 4 : 2;
  static constexpr int kStateHalf = HS * kRowBytes;  // HS rows x 64 columns of R, bf16
  static constexpr int kState = HS == 64 ? 2 * kStateHalf : kHalves * kStateHalf;  // one copy
  static constexpr int kStaging = 16 * kRowBytes;                                  // of one warp
  static constexpr int kStateAt = kStages * kStage;
  static constexpr int kStagingAt = kStateAt + 2 * kState;
  static constexpr int kShared = kStagingAt + 8 * kStaging + 1024;
};

#ifdef SALA_SM90A

template <int HS>
struct Block {
  char* shared;
  uint64_t *full, *empty;
  const LightningLine& line;
  int num_tiles;
};

template <int HS>
__device__ __forceinline__ void produce(const Block<HS>& block, Tile tile, const CUtensorMap* q_map,
                                        const CUtensorMap* k_map, const CUtensorMap* v_map,
                                        const CUtensorMap* g_map) {
  using Plan = Backward<HS>;
  for (int i = 0; i < block.num_tiles; ++i, tile.previous(block.line)) {
    const int s = i % Plan::kStages;
    if (i >= Plan::kStages) barrier_wait(&block.empty[s], (i / Plan::kStages - 1) & 1);
    barrier_expect(&block.full[s], Plan::kStage);
    char* stage = block.shared + s * Plan::kStage;
    const int token = tile.begin();
    for (int half = 0; half < Plan::kHalves; ++half) {
      char* to = stage + half * kHalfBytes;
      copy_box(to, q_map, 64 * half, tile.head, token, &block.full[s]);
      copy_box(to + Plan::kTile, k_map, 64 * half, tile.head, token, &block.full[s]);
      copy_box(to + 2 * Plan::kTile, v_map, 64 * half, tile.head, token, &block.full[s]);
      copy_box(to + 3 * Plan::kTile, g_map, 64 * half, tile.head, token, &block.full[s]);
    }
  }
}

template <int HS, bool kMakesDk>
__device__ __forceinline__ void consume(const Block<HS>& block, Tile tile, float* table,
                                        const LightningStates& states, __nv_bfloat16* result) {
  using Plan = Backward<HS>;
  using Wide = Product<HS>;
  const LightningLine& line = block.line;
  constexpr int group = kMakesDk ? 0 : 1;
  const int thread = threadIdx.x % kWarpgroup;
  const Lane at(thread);
  const auto barrier = [&] { named_barrier(1, Plan::kConsumers); };
  // This warpgroup's rows of R, and the copy that it reads.
  const int first_row = HS == 64 ? 0 : 64 * group;
  char* copies = block.shared + Plan::kStateAt + (HS == 64 ? group * Plan::kStateHalf : 0);
  char* staging = block.shared + Plan::kStagingAt + (group * 4 + at.warp) * Plan::kStaging;
  const int64_t token_stride = static_cast<int64_t>(line.num_heads) * HS;
  DecayTable decay{table, 0};
  float state[HS / 2];  // 64 rows x HS columns

  const auto add = [&](const float* from, float factor, bool transposed) {
#pragma unroll
    for (int half = 0; half < Plan::kHalves; ++half) {
      add_state(state + 32 * half, from, HS, first_row, 64 * half, transposed, factor, at);
    }
  };
  const auto clear = [&] {
#pragma unroll
    for (int i = 0; i < HS / 2; ++i) state[i] = 0;
  };
  const auto publish = [&](int copy) {
#pragma unroll
    for (int half = 0; half < Plan::kHalves; ++half) {
      store_fragments(copies + copy * Plan::kState + half * Plan::kStateHalf,
                      first_row + 16 * at.warp, at, state + 32 * half, 1);
    }
    fence_async_shared();
    barrier();
  };

  decay.fill(line.decay[tile.head], thread, kWarpgroup);
  barrier();
  clear();
  states_from_right<HS>(blockIdx.x, tile, line, states, decay, add);
  publish(0);

  for (int i = 0; i < block.num_tiles; ++i) {
    const int s = i % Plan::kStages;
    const char* stage = block.shared + s * Plan::kStage;
    const uint32_t q = shared_address(stage), k = q + Plan::kTile;
    const uint32_t v = k + Plan::kTile, g = v + Plan::kTile;
    const uint32_t own = kMakesDk ? v : k, other = kMakesDk ? g : q, mixed = kMakesDk ? q : g;
    const uint32_t after = shared_address(copies) + (i % 2) * Plan::kState;
    const int length = tile.length();
    float p[32], out[HS / 2];
    // Before any product is under way: the compiler would wait for them all.
    const float keep = decay[length];
#pragma unroll
    for (int e = 0; e < HS / 2; ++e) state[e] *= keep;
    barrier_wait(&block.full[s], (i / Plan::kStages) & 1);

    products_begin();
#pragma unroll
    for (int c = 0; c < HS / 16; ++c) {  // v g^T or k q^T
      const uint32_t step = (c / 4) * kHalfBytes + (c % 4) * 32;
      Product<64>::template run<false>(p, rows_descriptor(own + step),
                                       rows_descriptor(other + step), c > 0);
    }
    if constexpr (kMakesDk) {  // v R^T
#pragma unroll
      for (int c = 0; c < HS / 16; ++c) {
        Wide::template run<false>(
            out, rows_descriptor(own + (c / 4) * kHalfBytes + (c % 4) * 32),
            rows_descriptor(after + (c / 4) * Plan::kStateHalf + (c % 4) * 32), c > 0);
      }
    } else {  // k R
#pragma unroll
      for (int c = 0; c < HS / 16; ++c) {
        Wide::template run<true>(out, rows_descriptor(own + (c / 4) * kHalfBytes + (c % 4) * 32),
                                 columns_descriptor(after + c * 2048, Plan::kStateHalf), c > 0);
      }
    }
    products_commit();

    uint32_t left[4][4];
    load_weighted_transpose(left, stage + (first_row / 64) * kHalfBytes, at,
                            [&](int j) { return j < length ? decay[j + 1] : 0.f; });
    products_begin();
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      Wide::template run<true>(state, left[c], columns_descriptor(g + c * 2048, kHalfBytes), true);
    }
    products_commit();

    products_wait<1>();
    pin(p);
    pin(out);
    const float outer[2] = {decay[length - 1 - at.row], decay[length - 9 - at.row]};
#pragma unroll
    for (int e = 0; e < 32; ++e) {
      const int row = at.row + ((e / 2) % 2) * 8, column = (e / 4) * 8 + at.column + e % 2;
      p[e] = column < length ? p[e] * decay[column - row] : 0.f;
    }
#pragma unroll
    for (int e = 0; e < HS / 2; ++e) out[e] *= outer[(e / 2) % 2];
    uint32_t inside[4][4];
    as_left_operand(inside, p);
    products_begin();
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      Wide::template run<true>(out, inside[c], columns_descriptor(mixed + c * 2048, kHalfBytes),
                               true);
    }
    products_commit();
    products_wait<0>();
    pin(out);
    pin(state);
    if (at.lane == 0) barrier_arrive(&block.empty[s]);

    __nv_bfloat16* rows = result + tile.begin() * token_stride + tile.head * HS;
#pragma unroll
    for (int half = 0; half < Plan::kHalves; ++half) {
      store_tokens(rows + 64 * half, token_stride, length, staging, at, out + 32 * half,
                   line.scale);
    }
    if (tile.starts_document() && states.left != nullptr && (HS != 64 || group == 0)) {
#pragma unroll
      for (int half = 0; half < Plan::kHalves; ++half) {
        put_state(states.left + tile.state_offset(HS, line), state + 32 * half, HS, first_row,
                  64 * half, line.scale, at);
      }
    }

    if (i + 1 == block.num_tiles) break;
    const int head = tile.head;
    tile.previous(line);
    if (tile.ends_document()) {
      clear();
      if (states.given != nullptr) {
        add(states.given + tile.state_offset(HS, line), 1 / line.scale, states.given_transposed);
      }
      if (tile.head != head) {
        named_barrier(2 + group, kWarpgroup);  // every warp has read the old table
        decay.fill(line.decay[tile.head], thread, kWarpgroup);
      }
    }
    publish((i + 1) % 2);
  }
}

#endif  // SALA_SM90A

template <int HS>
__global__ void __launch_bounds__(Backward<HS>::kThreads, 1)
    backward_kernel(const __grid_constant__ CUtensorMap q_map,
                    const __grid_constant__ CUtensorMap k_map,
                    const __grid_constant__ CUtensorMap v_map,
                    const __grid_constant__ CUtensorMap g_map,
                    const __grid_constant__ LightningLine line,
                    const __grid_constant__ LightningStates states, __nv_bfloat16* dk,
                    __nv_bfloat16* dv) {
#ifdef SALA_SM90A
  using Plan = Backward<HS>;
  extern __shared__ char raw[];
  __shared__ uint64_t full[Plan::kStages], empty[Plan::kStages];
  __shared__ float tables[2][DecayTable::kSize];
  const int64_t first = range_begin(blockIdx.x, line);
  const Block<HS> block{raw + ((1024 - (shared_address(raw) & 1023)) & 1023), full, empty, line,
                        static_cast<int>(range_begin(blockIdx.x + 1, line) - first)};
  if (threadIdx.x == 0) {
    for (int s = 0; s < Plan::kStages; ++s) {
      barrier_init(&full[s], 1);
      barrier_init(&empty[s], Plan::kConsumers / 32);
    }
    barrier_init_done();
  }
  __syncthreads();
  Tile tile;
  tile.seek(first + block.num_tiles - 1, line);
  if (threadIdx.x >= Plan::kConsumers) {
    keep_registers<24>();
    if (threadIdx.x == Plan::kConsumers) produce(block, tile, &q_map, &k_map, &v_map, &g_map);
  } else if (threadIdx.x < kWarpgroup) {
    take_registers<240>();
    consume<HS, true>(block, tile, tables[0], states, dk);
  } else {
    take_registers<240>();
    consume<HS, false>(block, tile, tables[1], states, dv);
  }
#endif
}

template <int HS>
int launch(const void* const (&inputs)[4], void* dk, void* dv, const LightningStates& states,
           const LightningLine& line, cudaStream_t stream) {
  using Plan = Backward<HS>;
  CUtensorMap maps[4];
  for (int i = 0; i < 4; ++i) {
    const int error = make_tile_map(&maps[i], inputs[i], line.num_tokens, line.num_heads, HS);
    if (error) return error;
  }
  if (const cudaError_t error = cudaFuncSetAttribute(
          backward_kernel<HS>, cudaFuncAttributeMaxDynamicSharedMemorySize, Plan::kShared)) {
    return error;
  }
  backward_kernel<HS><<<line.num_ranges, Plan::kThreads, Plan::kShared, stream>>>(
      maps[0], maps[1], maps[2], maps[3], line, states, static_cast<__nv_bfloat16*>(dk),
      static_cast<__nv_bfloat16*>(dv));
  return cudaGetLastError();
}

}  // namespace

int lightning_backward_hopper(const void* q, const void* k, const void* v, const void* d_o,
                              void* dk, void* dv, const LightningStates& states, int64_t head_size,
                              const LightningLine& line, CUstream_st* stream) {
  const void* const inputs[] = {q, k, v, d_o};
  return head_size == 64 ? launch<64>(inputs, dk, dv, states, line, stream)
                         : launch<128>(inputs, dk, dv, states, line, stream);
}

}  // namespace sala
