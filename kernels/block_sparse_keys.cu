// Gradients of block-sparse attention's keys and values (block_sparse_launch.h): a thread block owns
// 64 keys and walks over a piece of the tokens that listed them. With the keys as rows, so that
// what comes out of one product is a register operand of the next:
//   pt = exp2(c k q^T - lse),   dst = pt (v d_o^T - delta)
//   dv = sum(pt d_o),           dk = scale sum(dst q)
//
// Both warpgroups keep 64 keys' dk and dv in registers and take turns with tiles of gathered rows:
// the G heads of one token after another. Rows are gathered with 16-byte copies, on Hopper by a
// warpgroup of its own. Several pieces of a column leave fp32 sums, which are added in order.
#include "kernels/block_sparse_inputs.h"
#include "kernels/block_sparse_rows.cuh"

namespace sala {
namespace {

constexpr int kRows = kSparseKeyRows;

template <class Arch, int HS, int kStageCount>
struct KeyPlan {
  static constexpr int kStages = kStageCount;  // Ampere: one for each warpgroup
  static constexpr int kConsumers = 2 * tiles::kWarpgroup;
  static constexpr int kThreads = kConsumers + (Arch::kHasProducer ? tiles::kWarpgroup : 0);
  static constexpr int kTile = HS / 64 * kHalfBytes;
  static constexpr int kStage = 2 * kTile;  // q, d_o
  static constexpr int kStagesAt = 2 * kTile;  // behind k, v
  static constexpr int kStatsAt = kStagesAt + kStages * kStage;
  static constexpr int kStats = kRows * (sizeof(float2) + sizeof(int));
  static constexpr int kShared = kStatsAt + kStages * kStats + kAlignment;
  static constexpr int kExchange = 64 * HS * sizeof(float);  // one of dk, dv of a warpgroup
  static_assert(2 * kExchange <= kStages * kStage);
};

struct KeyTensors {
  const __nv_bfloat16 *q, *k, *v, *d_o;
  const float2* stats;
};

// Which keys and which tokens a thread block works on.
struct Piece {
  int column, kv_head, doc, block, num_keys;  // num_keys: of the block
  int64_t key_row;
  const int* tokens;
  int num_tokens;
  int shared_slot;  // of its partial sums; -1: the column's only piece

  __device__ __forceinline__ Piece(int number, const ListColumns& columns,
                                   const BlockSparseShape& shape) {
    column = columns.piece_columns[number];
    locate(shape);
    const int first = columns.first_pieces[column], part = number - first;
    const bool alone = columns.first_pieces[column + 1] == first + 1;
    const int begin = part * columns.piece_tokens;
    tokens = columns.tokens + columns.starts[column] + begin;
    num_tokens = min(columns.piece_tokens, columns.sizes[column] - begin);
    shared_slot = alone ? -1 : columns.first_shared[column] + part;
  }
  __device__ __forceinline__ Piece(int of_column, const BlockSparseShape& shape)
      : column(of_column) {
    locate(shape);
  }

 private:
  __device__ __forceinline__ void locate(const BlockSparseShape& shape) {
    kv_head = column / shape.num_blocks;
    const int place = column % shape.num_blocks;
    doc = find_document(place, shape.k_tiles, shape.num_docs);
    block = place - shape.k_tiles[doc];
    key_row = shape.k_offsets[doc] + int64_t{block} * kSparseBlock;
    num_keys = min(kSparseBlock, static_cast<int>(shape.k_offsets[doc + 1] - key_row));
  }
};

// Rows of gathered tokens: q, d_o, stats, and the last key of the block that each may see.
template <class Plan, int HS>
struct Gather {
  static constexpr int kPieces = HS / 8;                           // of a row
  static constexpr int kStep = tiles::kWarpgroup / kPieces;        // rows that a warpgroup copies
  static constexpr int kPerThread = kRows / kStep;
  const KeyTensors& tensors;
  const BlockSparseShape& shape;
  const Piece& piece;
  int thread, tile_tokens, shift;
  int first_token = 0;

  __device__ __forceinline__ Gather(const KeyTensors& from, const BlockSparseShape& of,
                                    const Piece& what, int thread_of_group)
      : tensors(from), shape(of), piece(what), thread(thread_of_group) {
    tile_tokens = min(32, kRows / shape.group);
    shift = position_shift(piece.doc, shape) - piece.block * kSparseBlock;
  }
  __device__ __forceinline__ int num_tiles() const {
    return (piece.num_tokens + tile_tokens - 1) / tile_tokens;
  }
  // Starts the copies of tile `n`. Rows that are none become zeros: they add nothing.
  __device__ __forceinline__ void start(int n, uint32_t stage, char* stats) const {
    const int first = n * tile_tokens, count = min(tile_tokens, piece.num_tokens - first);
    const int num_rows = count * shape.group, lane = thread % 32;
    const int listed = lane < count ? piece.tokens[first + lane] : 0;
    const int row_piece = thread % kPieces;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int row = thread / kPieces + i * kStep;
      const int token = __shfl_sync(~0u, listed, (row / shape.group) & 31);
      const bool valid = row < num_rows;
      const int64_t from =
          valid ? row_of(token, row % shape.group) * HS + row_piece * 8 : 0;
      const uint32_t to =
          stage + row_piece / 8 * kHalfBytes + tiles::piece_offset(row, row_piece % 8);
      ampere::copy_piece(to, tensors.q + from, valid);
      ampere::copy_piece(to + Plan::kTile, tensors.d_o + from, valid);
    }
    const int row = thread % kRows;
    const int token = __shfl_sync(~0u, listed, (row / shape.group) & 31);
    const bool valid = row < num_rows;
    if (thread < kRows) {
      reinterpret_cast<float2*>(stats)[row] =
          valid ? tensors.stats[row_of(token, row % shape.group)] : make_float2(0, 0);
      // Later tokens see more: the first row tells whether any row of the tile needs a mask.
      reinterpret_cast<int*>(stats + kRows * sizeof(float2))[row] =
          valid ? token + shift : kSparseBlock;
    }
    ampere::copies_commit();
  }

 private:
  __device__ __forceinline__ int64_t row_of(int token, int head) const {
    return (static_cast<int64_t>(token) * shape.num_kv_heads + piece.kv_head) * shape.group + head;
  }
};

// k and v of the block, by the threads of both warpgroups; rows past the document's end are zero.
template <class Plan, int HS>
__device__ __forceinline__ void load_keys(const KeyTensors& tensors, const Piece& piece,
                                          const BlockSparseShape& shape, uint32_t to) {
  constexpr int kPieces = HS / 8;
  for (int i = threadIdx.x; i < kSparseBlock * kPieces; i += Plan::kConsumers) {
    const int row = i / kPieces, part = i % kPieces;
    const bool valid = row < piece.num_keys;
    const int64_t from =
        ((piece.key_row + (valid ? row : 0)) * shape.num_kv_heads + piece.kv_head) * HS + part * 8;
    const uint32_t place = to + part / 8 * kHalfBytes + tiles::piece_offset(row, part % 8);
    ampere::copy_piece(place, tensors.k + from, valid);
    ampere::copy_piece(place + Plan::kTile, tensors.v + from, valid);
  }
  ampere::copies_commit();
  ampere::copies_wait<0>();
}

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
  const int* limits = reinterpret_cast<const int*>(stats + kRows * sizeof(float2));
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
    for (int e = 0; e < 4; ++e) p[4 * j + e] = exp2_fast(p[4 * j + e] * c - (e % 2 ? two.z : two.x));
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
                                           const Piece& piece, const BlockSparseShape& shape,
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
__device__ __forceinline__ void finish(KeyGradients<HS>& sum, const Piece& piece,
                                       const BlockSparseShape& shape, char* shared,
                                       const KeyResults& results, const Lane& at) {
  const int group = threadIdx.x / tiles::kWarpgroup, thread = threadIdx.x % tiles::kWarpgroup;
  float* exchange = reinterpret_cast<float*>(shared + Plan::kStagesAt);
  constexpr int kFloats = Plan::kExchange / sizeof(float);
  const auto barrier = [] { tiles::named_barrier(1, Plan::kConsumers); };
  const auto put = [&](const float (&x)[HS / 2], float factor, __nv_bfloat16* to) {
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
    key_kernel(KeyTensors tensors, const __grid_constant__ ListColumns columns,
               const __grid_constant__ BlockSparseShape shape, KeyResults results) {
  using Plan = KeyPlan<Arch, HS, kStages>;
  extern __shared__ char raw[];
  char* shared = align_shared(raw);
  if (static_cast<int>(blockIdx.x) >= columns.first_pieces[columns.num_columns]) return;
  const Piece piece(blockIdx.x, columns, shape);
  const int group = threadIdx.x / tiles::kWarpgroup;
  const Gather<Plan, HS> gather(tensors, shape, piece, threadIdx.x % tiles::kWarpgroup);
  const uint32_t keys = tiles::shared_address(shared);
  const auto stage_at = [&](int s) { return keys + Plan::kStagesAt + s * Plan::kStage; };
  const auto stats_at = [&](int s) { return shared + Plan::kStatsAt + s * Plan::kStats; };
  const int num_tiles = gather.num_tiles();
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
        hopper::barrier_init(&full[s], tiles::kWarpgroup);
        hopper::barrier_init(&empty[s], tiles::kWarpgroup / 32);
      }
      hopper::barrier_init_done();
    }
    __syncthreads();
    if (threadIdx.x >= Plan::kConsumers) {
      hopper::keep_registers<40>();
      constexpr int kLag = 2;  // tiles whose copies are under way while the next is started
      const auto landed = [&](int n) {
        hopper::fence_async_shared();
        hopper::barrier_arrive(&full[n % kStages]);
      };
      for (int n = 0; n < num_tiles; ++n) {
        const int s = n % kStages;
        hopper::barrier_wait(&empty[s], (n / kStages & 1) ^ 1);
        gather.start(n, stage_at(s), stats_at(s));
        if (n >= kLag) {
          ampere::copies_wait<kLag>();
          landed(n - kLag);
        }
      }
      ampere::copies_wait<0>();
      for (int n = max(0, num_tiles - kLag); n < num_tiles; ++n) landed(n);
    } else {
      hopper::take_registers<232>();
      const Lane at(threadIdx.x % tiles::kWarpgroup);
      KeyGradients<HS> sum;
      clear(sum);
      load_keys<Plan, HS>(tensors, piece, shape, keys);
      hopper::fence_async_shared();
      tiles::named_barrier(1, Plan::kConsumers);
      for (int n = group; n < num_tiles; n += 2) {
        const int s = n % kStages;
        hopper::barrier_wait(&full[s], n / kStages & 1);
        add_rows<Arch, Plan, HS>(sum, keys, stage_at(s), stats_at(s), c, at, [&] {
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
  const Piece piece(column, shape);
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

template <class Arch, int HS, int kStages>
int launch(const KeyTensors& tensors, const ListColumns& columns, const KeyResults& results,
           const BlockSparseShape& shape, cudaStream_t stream) {
  using Plan = KeyPlan<Arch, HS, kStages>;
  const auto kernel = key_kernel<Arch, HS, kStages>;
  if (const int error = allow_shared(kernel, Plan::kShared)) return error;
  kernel<<<columns.max_pieces, Plan::kThreads, Plan::kShared, stream>>>(tensors, columns, shape,
                                                                         results);
  add_pieces_kernel<HS><<<columns.num_columns, 2 * tiles::kWarpgroup, 0, stream>>>(columns, shape,
                                                                                   results);
  return cudaGetLastError();
}

template <int HS>
int launch_for_device(const KeyTensors& tensors, const ListColumns& columns,
                      const KeyResults& results, const BlockSparseShape& shape,
                      cudaStream_t stream) {
  if (lightning_arch() == LightningArch::kHopper) {
    return launch<Hopper, HS, HS == 64 ? 8 : 5>(tensors, columns, results, shape, stream);
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
