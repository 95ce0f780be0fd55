// Block scores. With c = scale log2(e), for a query t and the heads h of a group:
//   L_h = log2 sum_m 2^(c q_h . coarse_m)      over the coarse windows that end at or before t
//   w_j = sum_h 2^(c q_h . window_j - L_h)     score of block b: max of w_j over 4b - 1 .. 4b + 3
//
// A block of threads has one tile of queries; each of two warpgroups keeps 128 rows of query heads
// in shared memory and multiplies every tile of 128 compressed keys with them, first the coarse
// ones for L, then the others. Products are transposed (keys are rows, query heads columns): most
// of the sum over heads then happens within a thread, and the tiles' row order (see
// compress.cu) leaves the four windows of a block to the same thread. The second half
// of a tile is multiplied while exponentials are taken of the first, and the other warpgroup fills
// what is left. (Products under way from one tile to the next would hide more, but the assembler
// then waits for every single one.)
//
// Where the time goes (H100, 32 query / 2 KV heads x 128, bf16): 11.0 ms of a selection's 13.8 at
// 128K tokens, 0.82 of 1.07 at 32K, 664 of 1370 at 1M. At 128K the 5.5 TFLOP of products take 7 ms
// at a GEMM's speed, the exponentials 6 beside them.
#include "kernels/selection/warpgroup.cuh"

namespace sala {
namespace {

using namespace select;

#ifdef SALA_SM90A

template <int HS>
__device__ __forceinline__ void produce(const char* tiles_of_head, const ScoredTile& tile,
                                        const FineTiles& fine, const SelectInput& input,
                                        char* shared, uint64_t* full, uint64_t* empty) {
  const int last = tile.position + tile.count - 1, block_size = 4 * input.stride;
  const int coarse = num_windows(last + 1, block_size);
  const int coarse_tiles = (coarse + kSelectKeyTile - 1) / kSelectKeyTile;
  for (int i = 0; i < coarse_tiles + fine.count; ++i) {
    const int s = i % Plan<HS>::kStages, turn = i / Plan<HS>::kStages;
    if (turn > 0) hopper::barrier_wait(&empty[s], (turn - 1) & 1);
    const int number = i < coarse_tiles
                           ? input.key_tiles[2 * tile.doc + 1] + i
                           : input.key_tiles[2 * tile.doc] + fine.first + i - coarse_tiles;
    hopper::barrier_expect(&full[s], Plan<HS>::kTile);
    hopper::copy_bytes(shared + s * Plan<HS>::kTile,
                       tiles_of_head + static_cast<int64_t>(number) * Plan<HS>::kTile,
                       Plan<HS>::kTile, &full[s]);
  }
}

#endif

template <int HS, int kGroup>
__global__ void __launch_bounds__(kThreads, 1)
    score_kernel(const __nv_bfloat16* q, const char* compressed,
                 const __grid_constant__ SelectInput input,
                 const __grid_constant__ SelectSlab slab) {
#ifdef SALA_SM90A
  constexpr int kStages = Plan<HS>::kStages, kTileQueries = kWarpgroups * kRows / kGroup;
  extern __shared__ char raw[];
  __shared__ uint64_t full[kStages], empty[kStages];
  char* shared = align_shared(raw);
  const int head = blockIdx.x % input.num_kv_heads;
  // The longest first.
  const int number = slab.num_tiles - 1 - static_cast<int>(blockIdx.x) / input.num_kv_heads;
  const ScoredTile tile(slab.first_tile + number, kTileQueries, input);
  if (tile.count <= 0) return;  // the decode step has a tile for every sequence
  const FineTiles fine(tile, input, slab);
  if (fine.count <= 0) return;
  // Warpgroups that have queries: not both at a document's end, and in the decode step.
  const int active = (tile.count * kGroup + kRows - 1) / kRows;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      hopper::barrier_init(&full[s], 1);
      hopper::barrier_init(&empty[s], active * tiles::kWarpgroup / 32);
    }
    hopper::barrier_init_done();
  }
  __syncthreads();
  if (threadIdx.x >= kConsumers) {
    hopper::keep_registers<24>();
    if (threadIdx.x == kConsumers) {
      produce<HS>(compressed + static_cast<int64_t>(head) * input.num_key_tiles * Plan<HS>::kTile,
                  tile, fine, input, shared, full, empty);
    }
  } else if (static_cast<int>(threadIdx.x) / tiles::kWarpgroup < active) {
    hopper::take_registers<240>();
    Consumer<HS, kGroup> consumer{input,
                                  tile,
                                  head,
                                  static_cast<int>(threadIdx.x) / tiles::kWarpgroup,
                                  Lane(threadIdx.x % tiles::kWarpgroup),
                                  shared,
                                  full,
                                  empty,
                                  0,
                                  input.scale * kLog2E};
    consumer.load_queries(q);
    float log_sum[32];
    consumer.normalise(log_sum);
    consumer.score(log_sum, fine, slab,
                   (static_cast<int64_t>(head) * slab.num_tiles + number) * kTileQueries);
  }
#else
  __trap();  // never chosen
#endif
}

template <int HS, int kGroup>
int launch_scores(const void* q, const void* compressed, const SelectInput& input,
                  const SelectSlab& slab, cudaStream_t stream) {
  const auto kernel = score_kernel<HS, kGroup>;
  const int error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Plan<HS>::kShared);
  if (error) return error;
  kernel<<<dim3(slab.num_tiles * input.num_kv_heads, slab.parts), kThreads, Plan<HS>::kShared,
           stream>>>(static_cast<const __nv_bfloat16*>(q), static_cast<const char*>(compressed),
                     input, slab);
  return cudaGetLastError();
}

template <int HS>
int launch_for_group(const void* q, const void* compressed, const SelectInput& input,
                     const SelectSlab& slab, cudaStream_t stream) {
  switch (select_padded_group(input.num_heads / input.num_kv_heads)) {
    case 1:
      return launch_scores<HS, 1>(q, compressed, input, slab, stream);
    case 2:
      return launch_scores<HS, 2>(q, compressed, input, slab, stream);
    case 4:
      return launch_scores<HS, 4>(q, compressed, input, slab, stream);
    case 8:
      return launch_scores<HS, 8>(q, compressed, input, slab, stream);
    case 16:
      return launch_scores<HS, 16>(q, compressed, input, slab, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace

int launch_select_scores(const void* q, const void* compressed, const SelectInput& input,
                         const SelectSlab& slab, CUstream_st* stream) {
  if (input.head_size == 64) return launch_for_group<64>(q, compressed, input, slab, stream);
  if (input.head_size == 128) return launch_for_group<128>(q, compressed, input, slab, stream);
  return cudaErrorInvalidValue;
}

}  // namespace sala
