// Lightning attention forward on Hopper. With i, j the places in a tile of n <= 64 tokens, S the
// state before it (HS x HS, rows features of k, columns features of v):
//   o = scale [ ((q k^T) o D) v + lambda^(i+1) q S ],   D_ij = lambda^(i-j) for i >= j
//   S = lambda^n S + sum_j lambda^(n-1-j) k_j v_j^T
//
// A block walks one range of the line of tiles (lightning_launch.h). A warpgroup owns 64 columns of
// v: its half of S stays in fp32 registers and is rounded to bf16 in shared memory once per tile as
// an operand, so that warpgroups share q and k tiles and nothing else. One thread feeds the copy
// engine, kStages tiles ahead.

#include "kernels/lightning_tiles.cuh"
#include "kernels/tensor_map.h"

namespace sala {
namespace {

using namespace hopper;

template <int HS>
struct Forward {
  static constexpr int kHalves = HS / 64;  // also warpgroups
  static constexpr int kConsumers = kHalves * kWarpgroup;
  static constexpr int kThreads = kConsumers + kWarpgroup;
  static constexpr int kBlocksPerSm = HS == 64 ? 2 : 1;
  static constexpr int kTile = kHalves * kHalfBytes;
  static constexpr int kStage = 3 * kTile;  // q, k, v
  static constexpr int kStages = 3;
  static constexpr int kState = HS * kRowBytes;    // of one warpgroup, bf16
  static constexpr int kStaging = 16 * kRowBytes;  // of one warp
  static constexpr int kStateAt = kStages * kStage;
  static constexpr int kStagingAt = kStateAt + kHalves * kState;
  static constexpr int kShared = kStagingAt + kHalves * 4 * kStaging + 1024;
};

#ifdef SALA_SM90A

// The place of a block: its range of the line, and the tiles in flight.
template <int HS>
struct Block {
  char* shared;
  uint64_t *full, *empty;
  const LightningLine& line;
  int num_tiles;
};

template <int HS>
__device__ __forceinline__ void produce(const Block<HS>& block, Tile tile, const CUtensorMap* q_map,
                                        const CUtensorMap* k_map, const CUtensorMap* v_map) {
  using Plan = Forward<HS>;
  for (int i = 0; i < block.num_tiles; ++i, tile.next(block.line)) {
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
    }
  }
}

template <int HS>
__device__ __forceinline__ void consume(const Block<HS>& block, Tile tile, float* tables,
                                        const LightningStates& states, __nv_bfloat16* o) {
  using Plan = Forward<HS>;
  const LightningLine& line = block.line;
  const int group = threadIdx.x / kWarpgroup, thread = threadIdx.x % kWarpgroup;
  const Lane at(thread);
  const auto group_barrier = [&] { named_barrier(Plan::kHalves == 1 ? 1 : 1 + group, kWarpgroup); };
  char* state_operand = block.shared + Plan::kStateAt + group * Plan::kState;
  char* staging = block.shared + Plan::kStagingAt + (group * 4 + at.warp) * Plan::kStaging;
  const int64_t token_stride = static_cast<int64_t>(line.num_heads) * HS;
  DecayTable decay{tables + group * DecayTable::kSize, 0};
  float state[Plan::kHalves][32];

  const auto add = [&](const float* from, float factor, bool transposed) {
#pragma unroll
    for (int m = 0; m < Plan::kHalves; ++m) {
      add_state(state[m], from, HS, 64 * m, 64 * group, transposed, factor, at);
    }
  };
  const auto clear = [&] {
#pragma unroll
    for (int m = 0; m < Plan::kHalves; ++m) {
#pragma unroll
      for (int i = 0; i < 32; ++i) state[m][i] = 0;
    }
  };
  const auto publish = [&] {  // S as an operand: rows are features of k
#pragma unroll
    for (int m = 0; m < Plan::kHalves; ++m) {
      store_fragments(state_operand, 64 * m + 16 * at.warp, at, state[m], 1);
    }
    fence_async_shared();
    group_barrier();
  };

  decay.fill(line.decay[tile.head], thread, kWarpgroup);
  group_barrier();
  clear();
  states_from_left<HS>(blockIdx.x, tile, line, states, decay, add);
  publish();

  for (int i = 0; i < block.num_tiles; ++i) {
    const int s = i % Plan::kStages;
    const char* stage = block.shared + s * Plan::kStage;
    const uint32_t q = shared_address(stage), k = q + Plan::kTile;
    const uint32_t v = k + Plan::kTile + group * kHalfBytes;
    const uint32_t before = shared_address(state_operand);
    const int length = tile.length();
    float p[32], out[32];
    // Before any product is under way: the compiler would wait for them all.
    const float keep = decay[length];
#pragma unroll
    for (int m = 0; m < Plan::kHalves; ++m) {
#pragma unroll
      for (int e = 0; e < 32; ++e) state[m][e] *= keep;
    }
    barrier_wait(&block.full[s], (i / Plan::kStages) & 1);

    products_begin();
#pragma unroll
    for (int c = 0; c < HS / 16; ++c) {  // q k^T
      const uint32_t step = (c / 4) * kHalfBytes + (c % 4) * 32;
      Product<64>::template run<false>(p, rows_descriptor(q + step), rows_descriptor(k + step),
                                       c > 0);
    }
#pragma unroll
    for (int c = 0; c < HS / 16; ++c) {  // q S
      Product<64>::template run<true>(out, rows_descriptor(q + (c / 4) * kHalfBytes + (c % 4) * 32),
                                      columns_descriptor(before + c * 2048, kHalfBytes), c > 0);
    }
    products_commit();

    uint32_t left[Plan::kHalves][4][4];
#pragma unroll
    for (int m = 0; m < Plan::kHalves; ++m) {
      load_weighted_transpose(left[m], stage + Plan::kTile + m * kHalfBytes, at,
                              [&](int j) { return decay[length - 1 - j]; });
    }
    products_begin();
#pragma unroll
    for (int m = 0; m < Plan::kHalves; ++m) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        Product<64>::template run<true>(state[m], left[m][c],
                                        columns_descriptor(v + c * 2048, kHalfBytes), true);
      }
    }
    products_commit();

    products_wait<1>();
    pin(p);
    pin(out);
    const float inter[2] = {decay[at.row + 1], decay[at.row + 9]};
#pragma unroll
    for (int e = 0; e < 32; ++e) {
      const int row = at.row + ((e / 2) % 2) * 8, column = (e / 4) * 8 + at.column + e % 2;
      p[e] *= decay[row - column];
      out[e] *= inter[(e / 2) % 2];
    }
    uint32_t inside[4][4];
    as_left_operand(inside, p);
    products_begin();
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      Product<64>::template run<true>(out, inside[c], columns_descriptor(v + c * 2048, kHalfBytes),
                                      true);
    }
    products_commit();
    products_wait<0>();
    pin(out);
#pragma unroll
    for (int m = 0; m < Plan::kHalves; ++m) pin(state[m]);
    if (at.lane == 0) barrier_arrive(&block.empty[s]);

    store_tokens(o + tile.begin() * token_stride + tile.head * HS + 64 * group, token_stride,
                 length, staging, at, out, line.scale);
    if (tile.ends_document() && states.left != nullptr) {
#pragma unroll
      for (int m = 0; m < Plan::kHalves; ++m) {
        put_state(states.left + tile.state_offset(HS, line), state[m], HS, 64 * m, 64 * group, 1,
                  at);
      }
    }

    const int head = tile.head;
    tile.next(line);
    group_barrier();  // every warp has read the old state and the old table
    if (i + 1 == block.num_tiles) break;
    if (tile.starts_document()) {
      clear();
      if (states.given != nullptr) {
        add(states.given + tile.state_offset(HS, line), 1, states.given_transposed);
      }
      if (tile.head != head) decay.fill(line.decay[tile.head], thread, kWarpgroup);
    }
    publish();
  }
}

#endif  // SALA_SM90A

template <int HS>
__global__ void __launch_bounds__(Forward<HS>::kThreads, Forward<HS>::kBlocksPerSm)
    forward_kernel(const __grid_constant__ CUtensorMap q_map,
                   const __grid_constant__ CUtensorMap k_map,
                   const __grid_constant__ CUtensorMap v_map,
                   const __grid_constant__ LightningLine line,
                   const __grid_constant__ LightningStates states, __nv_bfloat16* o) {
#ifdef SALA_SM90A
  using Plan = Forward<HS>;
  extern __shared__ char raw[];
  __shared__ uint64_t full[Plan::kStages], empty[Plan::kStages];
  __shared__ float tables[Plan::kHalves * DecayTable::kSize];
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
  tile.seek(first, line);
  if (threadIdx.x >= Plan::kConsumers) {
    keep_registers<HS == 64 ? 40 : 24>();
    if (threadIdx.x == Plan::kConsumers) produce(block, tile, &q_map, &k_map, &v_map);
  } else {
    take_registers<HS == 64 ? 216 : 240>();
    consume(block, tile, tables, states, o);
  }
#endif
}

template <int HS>
int launch(const void* q, const void* k, const void* v, void* o, const LightningStates& states,
           const LightningLine& line, cudaStream_t stream) {
  using Plan = Forward<HS>;
  CUtensorMap maps[3];
  const void* inputs[] = {q, k, v};
  for (int i = 0; i < 3; ++i) {
    const int error = make_tile_map(&maps[i], inputs[i], line.num_tokens, line.num_heads, HS);
    if (error) return error;
  }
  if (const cudaError_t error = cudaFuncSetAttribute(
          forward_kernel<HS>, cudaFuncAttributeMaxDynamicSharedMemorySize, Plan::kShared)) {
    return error;
  }
  forward_kernel<HS><<<line.num_ranges, Plan::kThreads, Plan::kShared, stream>>>(
      maps[0], maps[1], maps[2], line, states, static_cast<__nv_bfloat16*>(o));
  return cudaGetLastError();
}

}  // namespace

int lightning_forward_hopper(const void* q, const void* k, const void* v, void* o,
                             const LightningStates& states, int64_t head_size,
                             const LightningLine& line, CUstream_st* stream) {
  return head_size == 64 ? launch<64>(q, k, v, o, states, line, stream)
                         : launch<128>(q, k, v, o, states, line, stream);
}

bool lightning_hopper_usable() {
  int device = 0, major = 0;
  cudaFuncAttributes attributes;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major == 9 && cudaFuncGetAttributes(&attributes, forward_kernel<128>) == cudaSuccess &&
         attributes.ptxVersion >= 90;  // 80: PTX of the sm_80 build, translated for this device
}

int lightning_num_ranges(int64_t num_tiles, int64_t head_size) {
  int device = 0, num_sms = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device);
  const int64_t blocks =
      int64_t{num_sms} * (head_size == 64 ? Forward<64>::kBlocksPerSm : Forward<128>::kBlocksPerSm);
  return static_cast<int>(num_tiles < blocks ? num_tiles : blocks);
}

}  // namespace sala
