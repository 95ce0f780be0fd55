// Block lists from block scores. A team of warps holds one query's scores in registers, bisects the
// bits of the score that divides chosen from not chosen, and writes what lies above in the order of
// the blocks. Scores are sums of exponentials, never negative, so that their bits order them (and
// NaN comes before all); of equal ones the lower block is taken.
#include "kernels/selection/places.cuh"

namespace sala {
namespace {

constexpr int kStep = 8;    // scores between two looks for the end
constexpr int kItems = 64;  // scores of a thread, of 32 neighbours a warp
constexpr int kWarpBlocks = 32 * kItems;
constexpr int kFewWarps = 4;
constexpr unsigned kLanes = 0xffffffffu;
constexpr unsigned kBeyond = 1u << 31;  // more than any score's bits

// What the threads of a team of kWarps warps tell each other.
template <int kWarps>
struct Team {
  int* words;  // shared, 2 kWarps
  int warp, lane;
  int turn = 0;

  // The values of all warps, the same in all threads of a warp, summed; `before`: of those before
  // this one.
  __device__ __forceinline__ int sum(int value, int* before = nullptr) {
    if constexpr (kWarps == 1) {
      if (before != nullptr) *before = 0;
      return value;
    } else {
      int* board = words + turn % 2 * kWarps;
      ++turn;
      if (lane == 0) board[warp] = value;
      __syncthreads();  // boards alternate: nobody writes one before all have read it
      int total = 0;
      for (int w = 0; w < kWarps; ++w) {
        if (before != nullptr && w == warp) *before = total;
        total += board[w];
      }
      return total;
    }
  }
};

// The scores of blocks first + 32 i + lane, i < kItems, as far as `end`.
struct Scores {
  unsigned bits[kItems];
  int first, end;

  __device__ __forceinline__ void load(const float* scores, const float* edges, int lane) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int b = first + 32 * i + lane;
      bits[i] = 0;
      if (first + 32 * (i / kStep * kStep) >= end) continue;
      if (b < end) {
        bits[i] = __float_as_uint(scores[b]);
        if (b % 8 == 0 && b > 0) bits[i] = max(bits[i], __float_as_uint(edges[b / 8 - 1]));
        bits[i] &= kBeyond - 1;  // a NaN has a sign
      }
    }
  }
  // The largest of the warp's.
  __device__ __forceinline__ unsigned largest() const {
    unsigned mine = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (i % kStep == 0 && first + 32 * i >= end) break;
      mine = max(mine, bits[i]);
    }
    return __reduce_max_sync(kLanes, mine);
  }
  // How many of the warp's blocks score at least `limit` > 0.
  __device__ __forceinline__ int count(unsigned limit) const {
    int mine = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (i % kStep == 0 && first + 32 * i >= end) break;
      mine += bits[i] >= limit;
    }
    return __reduce_add_sync(kLanes, mine);
  }
};

// The largest limit that `wanted` blocks reach, or one that exactly `wanted` reach; 0 where it
// takes scores of zero. 0 < wanted < number of blocks.
template <int kWarps>
__device__ __forceinline__ unsigned find_limit(const Scores& scores, int wanted,
                                               Team<kWarps>& team) {
  unsigned low = 0, high = kBeyond;  // enough reach low, too few high
  // The first guess: scores within a factor of 2^kBinades of the largest.
  constexpr unsigned kBinades = 8, kBinade = 1u << 23;
  unsigned middle = kBeyond / 2;
  if constexpr (kWarps == 1) {
    const unsigned largest = scores.largest();
    if (largest == 0) return 0;
    high = largest + 1;
    middle = high > (kBinades + 1) * kBinade ? high - kBinades * kBinade : high / 2;
  }
  for (; high - low > 1; middle = low + (high - low) / 2) {
    const int reached = team.sum(scores.count(middle));
    if (reached == wanted) return middle;
    (reached > wanted ? low : high) = middle;
  }
  return low;
}

template <int kWarps>
__global__ void __launch_bounds__(32 * (kWarps < kFewWarps ? kFewWarps : kWarps))
    best_kernel(const __grid_constant__ SelectInput input, const __grid_constant__ SelectSlab slab,
                int tile_queries, int num_rows, int* lists) {
  constexpr int kTeams = kWarps < kFewWarps ? kFewWarps / kWarps : 1;
  __shared__ int words[2 * kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = blockIdx.x * kTeams + warp / kWarps;
  if (row >= num_rows) return;  // whole teams, and whole blocks of threads where teams share words
  const int number = row / tile_queries % slab.num_tiles;
  const int head = row / tile_queries / slab.num_tiles, query = row % tile_queries;
  const ScoredTile tile(slab.first_tile + number, tile_queries, input);
  if (query >= tile.count) return;

  Team<kWarps> team{words, warp % kWarps, lane};
  const int own = (tile.position + query) / (4 * input.stride);
  const int local = own - input.local_blocks;  // the first of the forced ones
  const int wanted = input.list_size - input.init_blocks - (input.local_blocks + 1);
  Scores scores;
  scores.first = input.init_blocks + team.warp * kWarpBlocks;
  scores.end = min(local, scores.first + kWarpBlocks);
  scores.load(slab.scores + static_cast<int64_t>(row) * slab.row_blocks,
              slab.edges + static_cast<int64_t>(row) * (slab.row_blocks / 8), lane);
  int* list = lists + (static_cast<int64_t>(head) * input.num_queries + tile.first + query) *
                          input.list_size;
  if (team.warp == 0) {
    for (int i = lane; i < input.init_blocks; i += 32) list[i] = i;
    for (int i = lane; i <= input.local_blocks; i += 32) {
      list[input.init_blocks + wanted + i] = local + i;
    }
  }
  if (wanted == 0) return;

  const unsigned limit = find_limit(scores, wanted, team);
  // All above the limit, and as many at the limit as there is room for, lowest first.
  const int mine_above = scores.count(limit + 1);
  int above_before = 0, equal_before = 0;
  const int room = wanted - team.sum(mine_above, &above_before);
  int mine_equal = 0;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (i % kStep == 0 && scores.first + 32 * i >= scores.end) break;
    mine_equal += scores.bits[i] == limit && scores.first + 32 * i + lane < scores.end;
  }
  team.sum(__reduce_add_sync(kLanes, mine_equal), &equal_before);
  int* next = list + input.init_blocks + above_before + min(equal_before, room);
  const unsigned lower_lanes = (1u << lane) - 1;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (i % kStep == 0 && scores.first + 32 * i >= scores.end) break;
    const int b = scores.first + 32 * i + lane;
    const bool equal = scores.bits[i] == limit && b < scores.end;
    const unsigned equals = __ballot_sync(kLanes, equal);
    const bool chosen =
        scores.bits[i] > limit || (equal && equal_before + __popc(equals & lower_lanes) < room);
    const unsigned chosen_lanes = __ballot_sync(kLanes, chosen);
    if (chosen) next[__popc(chosen_lanes & lower_lanes)] = b;
    next += __popc(chosen_lanes);
    equal_before += __popc(equals);
  }
}

template <int kWarps>
int launch_best(const SelectInput& input, const SelectSlab& slab, int* lists, cudaStream_t stream) {
  constexpr int kTeams = kWarps < kFewWarps ? kFewWarps / kWarps : 1;
  const int tile_queries = select_tile_queries(input.num_heads / input.num_kv_heads);
  const int num_rows = slab.num_tiles * tile_queries * input.num_kv_heads;
  best_kernel<kWarps><<<(num_rows + kTeams - 1) / kTeams, 32 * kTeams * kWarps, 0, stream>>>(
      input, slab, tile_queries, num_rows, lists);
  return cudaGetLastError();
}

constexpr int kAllThreads = 128;

// A warp per query.
__global__ void __launch_bounds__(kAllThreads)
    all_kernel(const __grid_constant__ SelectInput input, int* lists) {
  const int query = blockIdx.x * (kAllThreads / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (query >= input.num_queries) return;
  const int doc = find_entry(input.q_offsets, input.num_docs, query);
  const int before_end = input.q_offsets[doc + 1] - query;
  const int position = input.k_offsets[doc + 1] - input.k_offsets[doc] - before_end;
  const int own = position / (4 * input.stride);
  if (own >= input.list_size) return;
  for (int head = 0; head < input.num_kv_heads; ++head) {
    int* list = lists + (static_cast<int64_t>(head) * input.num_queries + query) * input.list_size;
    for (int i = lane; i < input.list_size; i += 32) list[i] = i <= own ? i : -1;
  }
}

}  // namespace

int launch_select_best(const SelectInput& input, const SelectSlab& slab, int* lists,
                       CUstream_st* stream) {
  if (slab.row_blocks <= kWarpBlocks) return launch_best<1>(input, slab, lists, stream);
  if (slab.row_blocks <= 4 * kWarpBlocks) return launch_best<4>(input, slab, lists, stream);
  if (slab.row_blocks <= kSelectMaxBlocks) return launch_best<16>(input, slab, lists, stream);
  return cudaErrorInvalidValue;
}

int launch_select_all(const SelectInput& input, int* lists, CUstream_st* stream) {
  const int64_t threads = int64_t{32} * input.num_queries;
  all_kernel<<<static_cast<int>((threads + kAllThreads - 1) / kAllThreads), kAllThreads, 0,
               stream>>>(input, lists);
  return cudaGetLastError();
}

}  // namespace sala
