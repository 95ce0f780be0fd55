// Gradients of block-sparse attention's keys and values (block_sparse_launch.h): a thread block
// owns 64 keys and walks over a piece of the tokens that listed them. With the keys as rows, so
// that what comes out of one product is a register operand of the next:
//   pt = exp2(c k q^T - lse),   dst = pt (v d_o^T - delta)
//   dv = sum(pt d_o),           dk = scale sum(dst q)
//
// Both warpgroups keep 64 keys' dk and dv in registers and take turns with tiles of gathered rows:
// the G heads of one token after another (block_sparse_gather.cuh). Several pieces of a column
// leave fp32 sums, which are added in order.
#include "kernels/attention/block_sparse_gather.cuh"
#include "kernels/attention/block_sparse_inputs.h"
#include "kernels/attention/block_sparse_rows.cuh"

namespace sala {
namespace {

template <int HS>
struct KeyGradients {
  float dk[HS / 2], dv[HS / 2];
};

// One tile of rows. `unread()` is called when the tile before it is no longer read.
template <class Arch, class Plan, int HS, class Unread>
__device__ __forceinline__ void add_rows(KeyGradients<HS>& sum, uint32_t keys, uint32_t stage,
                                         const char* stats, float c, const Lane& at,
                                         const Unread& unread) {
  const uint32_t values = keys + Plan::kTile, d_o = stage + Plan::kTile;
  const float4* row_stats = reinterpret_cast<const float4*>(stats) + at.column / 2;
  const int* limits = reinterpret_cast<const int*>(stats + kSparseKeyRows * sizeof(float2));
  float p[32], ds[32];
  uint32_t left[4][4], right[4][4];
  Arch::begin();
  Arch::template by_rows<64, HS>(p, keys, stage, kHalfBytes, at);
  Arch::commit();
  // The products that the last tile left under way still hold their operands' registers.
  Arch::template wait<1>(sum.dk, sum.dv);
  unread();
  Arch::begin();
  Arch::template by_rows<64, HS>(ds, values, d_o, kHalfBytes, at);
  Arch::commit();
  Arch::template wait<1>(p);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float4 two = row_stats[4 * j];
#pragma unroll
    for (int e = 0; e < 4; ++e)
      p[4 * j + e] = exp2_fast(p[4 * j + e] * c - (e % 2 ? two.z : two.x));
  }
  if (limits[0] < kSparseBlock - 1) {
#pragma unroll
    for (int e = 0; e < 32; ++e) {
      const int key = at.row + ((e / 2) % 2) * 8, row = (e / 4) * 8 + at.column + e % 2;
      if (key > limits[row]) p[e] = 0;
    }
  }
  Arch::template wait<0>(ds);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float4 two = row_stats[4 * j];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      ds[4 * j + e] = p[4 * j + e] * (ds[4 * j + e] - (e % 2 ? two.w : two.y));
    }
  }
  as_left_operand(left, p);
  as_left_operand(right, ds);
  Arch::begin();
  Arch::template add_by_columns<HS>(sum.dv, left, d_o, kHalfBytes, at);
  Arch::template add_by_columns<HS>(sum.dk, right, stage, kHalfBytes, at);
  Arch::commit();
}

// Fragments of one warpgroup, 64 keys x HS, as they lie in exchange and partial sums.
template <int HS>
__device__ __forceinline__ void put_fragments(float* to, const float (&x)[HS / 2], int thread) {
#pragma unroll
  for (int e = 0; e < HS / 2; ++e) to[e * tiles::kWarpgroup + thread] = x[e];
}
template <int HS>
__device__ __forceinline__ void add_fragments(float (&x)[HS / 2], const float* from, int thread) {
#pragma unroll
  for (int e = 0; e < HS / 2; ++e) x[e] += from[e * tiles::kWarpgroup + thread];
}

template <int HS>
__device__ __forceinline__ void store_keys(__nv_bfloat16* to, const float (&x)[HS / 2],
                                           const ColumnPiece& piece, const BlockSparseShape& shape,
                                           char* warp_staging, float factor, const Lane& at) {
  const int64_t stride = static_cast<int64_t>(shape.num_kv_heads) * HS;
  __nv_bfloat16* rows = to + piece.key_row * stride + piece.kv_head * HS;
#pragma unroll
  for (int half = 0; half < HS / 64; ++half) {
    store_tokens(rows + 64 * half, stride, piece.num_keys, warp_staging, at, x + 32 * half, factor);
  }
}

struct KeyResults {
  __nv_bfloat16 *dk, *dv;
  float* partials;
};

// Both warpgroups' sums together: the first ends with dk, the second with dv.
template <class Plan, int HS>
__device__ __forceinline__ void finish(KeyGradients<HS>& sum, const ColumnPiece& piece,
                                       const BlockSparseShape& shape, char* shared,
                                       const KeyResults& results, const Lane& at) {
  const int group = threadIdx.x / tiles::kWarpgroup, thread = threadIdx.x % tiles::kWarpgroup;
  float* exchange = reinterpret_cast<float*>(shared + Plan::kStagesAt);
  constexpr int kFloats = Plan::kExchange / sizeof(float);
  const auto barrier = [] { tiles::named_barrier(1, Plan::kConsumers); };
  const auto put = [&](const float(&x)[HS / 2], float factor, __nv_bfloat16* to) {
    if (piece.shared_slot >= 0) {
      put_fragments<HS>(results.partials + (int64_t{piece.shared_slot} * 2 + group) * kFloats, x,
                        thread);
    } else {
      char* staging = shared + (group * 4 + at.warp) * 16 * tiles::kRowBytes;  // over k and v
      store_keys<HS>(to, x, piece, shape, staging, factor, at);
    }
  };
  barrier();  // nobody reads k, v and the stages any more
  if (group == 0) {
    put_fragments<HS>(exchange + kFloats, sum.dv, thread);
    barrier();
    add_fragments<HS>(sum.dk, exchange, thread);
    put(sum.dk, shape.scale, results.dk);
  } else {
    put_fragments<HS>(exchange, sum.dk, thread);
    barrier();
    add_fragments<HS>(sum.dv, exchange + kFloats, thread);
    put(sum.dv, 1, results.dv);
  }
}

template <class Arch, int HS, int kStages>
__global__ void __launch_bounds__(KeyPlan<Arch, HS, kStages>::kThreads, 1)
    key_kernel(KeyTensors tensors, const __grid_constant__ BoxesOf<Arch> boxes,
               const __grid_constant__ ListColumns columns,
               const __grid_constant__ BlockSparseShape shape, KeyResults results) {
  using Plan = KeyPlan<Arch, HS, kStages>;
  extern __shared__ char raw[];
  char* shared = align_shared(raw);
  if (static_cast<int>(blockIdx.x) >= columns.first_pieces[columns.num_columns]) return;
  const ColumnPiece piece(blockIdx.x, columns, shape);
  const int group = threadIdx.x / tiles::kWarpgroup;
  const uint32_t keys = tiles::shared_address(shared);
  const auto stage_at = [&](int s) { return keys + Plan::kStagesAt + s * Plan::kStage; };
  const auto stats_at = [&](int s) { return shared + Plan::kStatsAt + s * Plan::kStats; };
  const int num_tiles = piece.num_tiles(shape.group);
  const float c = shape.scale * kLog2E;
  const auto clear = [](KeyGradients<HS>& sum) {
#pragma unroll
    for (int e = 0; e < HS / 2; ++e) sum.dk[e] = sum.dv[e] = 0;
  };
  if constexpr (!Arch::kHasProducer) {
    const Lane at(threadIdx.x % tiles::kWarpgroup);
    const auto barrier = [&] { tiles::named_barrier(2 + group, tiles::kWarpgroup); };
    KeyGradients<HS> sum;
    clear(sum);
    const CopiedRows<Plan, HS> gather(tensors, shape, piece, threadIdx.x % tiles::kWarpgroup);
    load_keys<Plan, HS>(tensors, piece, shape, keys);
    tiles::named_barrier(1, Plan::kConsumers);
    for (int n = group; n < num_tiles; n += 2) {
      gather.start(n, stage_at(group), stats_at(group));
      ampere::copies_wait<0>();
      barrier();
      add_rows<Arch, Plan, HS>(sum, keys, stage_at(group), stats_at(group), c, at, [] {});
      barrier();
    }
    finish<Plan, HS>(sum, piece, shape, shared, results, at);
  } else {
#ifdef SALA_SM90A
    __shared__ uint64_t full[kStages], empty[kStages];
    if (threadIdx.x == 0) {
      for (int s = 0; s < kStages; ++s) {
        hopper::barrier_init(&full[s], 32 + 32);  // copies, other writes of the producer's warp
        hopper::barrier_init(&empty[s], tiles::kWarpgroup / 32);
      }
      hopper::barrier_init_done();
    }
    __syncthreads();
    if (threadIdx.x >= Plan::kConsumers) {
      hopper::keep_registers<40>();
      if (threadIdx.x < Plan::kConsumers + 32) {
        const BoxedRows<Plan, HS> gather(tensors, boxes, shape, piece, threadIdx.x % 32);
        int listed = gather.token_of(0);
        for (int n = 0; n < num_tiles; ++n) {
          const int s = n % kStages, ahead = gather.token_of(n + 1);
          hopper::barrier_wait(&empty[s], (n / kStages & 1) ^ 1);
          gather.start(listed, shared + Plan::kStagesAt + s * Plan::kStage, stats_at(s), &full[s]);
          listed = ahead;
        }
      }
    } else {
      hopper::take_registers<232>();
      const Lane at(threadIdx.x % tiles::kWarpgroup);
      KeyGradients<HS> sum;
      clear(sum);
      load_keys<Plan, HS>(tensors, piece, shape, keys);
      clear_unused_rows<Plan, HS>(shared + Plan::kStagesAt, shape.group);
      hopper::fence_async_shared();
      tiles::named_barrier(1, Plan::kConsumers);
      for (int n = group; n < num_tiles; n += 2) {
        const int s = n % kStages;
        hopper::barrier_wait(&full[s], n / kStages & 1);
        add_rows<Arch, Plan, HS>(sum, keys, stage_at(s), stats_at(s), c, at, [&] {
          __syncwarp();
          if (n >= 2 && at.lane == 0) hopper::barrier_arrive(&empty[(n - 2) % kStages]);
        });
      }
      Arch::template wait<0>(sum.dk, sum.dv);
      finish<Plan, HS>(sum, piece, shape, shared, results, at);
    }
#else
    __trap();  // never chosen: lightning_arch()
#endif
  }
}

// Adds the pieces of a column in order: one warpgroup for dk, one for dv.
template <int HS>
__global__ void __launch_bounds__(2 * tiles::kWarpgroup)
    add_pieces_kernel(const __grid_constant__ ListColumns columns,
                      const __grid_constant__ BlockSparseShape shape, KeyResults results) {
  __shared__ __align__(1024) char staging[8 * 16 * tiles::kRowBytes];
  const int column = blockIdx.x;
  const int first = columns.first_shared[column], last = columns.first_shared[column + 1];
  if (first == last) return;
  const int group = threadIdx.x / tiles::kWarpgroup, thread = threadIdx.x % tiles::kWarpgroup;
  const Lane at(thread);
  const ColumnPiece piece(column, shape);
  float sum[HS / 2];
#pragma unroll
  for (int e = 0; e < HS / 2; ++e) sum[e] = 0;
  for (int slot = first; slot < last; ++slot) {
    add_fragments<HS>(sum, results.partials + (int64_t{slot} * 2 + group) * 64 * HS, thread);
  }
  store_keys<HS>(group == 0 ? results.dk : results.dv, sum, piece, shape,
                 staging + (group * 4 + at.warp) * 16 * tiles::kRowBytes,
                 group == 0 ? shape.scale : 1.f, at);
}

int make_boxes(TokenBoxes* boxes, const KeyTensors& tensors, int64_t HS,
               const BlockSparseShape& shape) {
  const __nv_bfloat16* const gathered[] = {tensors.q, tensors.d_o};
  const int G = shape.group, NH = shape.num_kv_heads * G;
  for (int n = 0; n < 2; ++n) {
    const auto make = [&](CUtensorMap* map, int num_tokens) {
      return make_tile_map(map, gathered[n], shape.num_queries, NH, HS, num_tokens, G);
    };
    if (const int error = make(&boxes->one[n], 1)) return error;
    if (const int error = make(&boxes->four[n], 4)) return error;
  }
  return cudaSuccess;
}
int make_boxes(NoBoxes*, const KeyTensors&, int64_t, const BlockSparseShape&) {
  return cudaSuccess;
}

template <class Arch, int HS, int kStages>
int launch(const KeyTensors& tensors, const ListColumns& columns, const KeyResults& results,
           const BlockSparseShape& shape, cudaStream_t stream) {
  using Plan = KeyPlan<Arch, HS, kStages>;
  const auto kernel = key_kernel<Arch, HS, kStages>;
  if (const int error = allow_shared(kernel, Plan::kShared)) return error;
  BoxesOf<Arch> boxes{};
  if (const int error = make_boxes(&boxes, tensors, HS, shape)) return error;
  kernel<<<columns.max_pieces, Plan::kThreads, Plan::kShared, stream>>>(tensors, boxes, columns,
                                                                        shape, results);
  add_pieces_kernel<HS>
      <<<columns.num_columns, 2 * tiles::kWarpgroup, 0, stream>>>(columns, shape, results);
  return cudaGetLastError();
}

template <int HS>
int launch_for_device(const KeyTensors& tensors, const ListColumns& columns,
                      const KeyResults& results, const BlockSparseShape& shape,
                      cudaStream_t stream) {
  if (lightning_arch() == LightningArch::kHopper) {
    constexpr int kStages = HS == 64 ? 8 : 5;
    return launch<Hopper, HS, kStages>(tensors, columns, results, shape, stream);
  }
  return launch<Ampere, HS, 2>(tensors, columns, results, shape, stream);
}

}  // namespace

int launch_block_sparse_dk_dv(const void* q, const void* k, const void* v, const void* d_o,
                              const float* stats, const ListColumns& columns, float* partials,
                              void* dk, void* dv, int64_t head_size, const BlockSparseShape& shape,
                              CUstream_st* stream) {
  const auto bf16 = [](const void* x) { return static_cast<const __nv_bfloat16*>(x); };
  const KeyTensors tensors{bf16(q), bf16(k), bf16(v), bf16(d_o),
                           reinterpret_cast<const float2*>(stats)};
  const KeyResults results{static_cast<__nv_bfloat16*>(dk), static_cast<__nv_bfloat16*>(dv),
                           partials};
  if (head_size == 64) return launch_for_device<64>(tensors, columns, results, shape, stream);
  if (head_size == 128) return launch_for_device<128>(tensors, columns, results, shape, stream);
  return cudaErrorInvalidValue;
}

}  // namespace sala
