// A warpgroup of the kernel of block scores (scores.cu): products of tiles of keys
// with its query heads, the logarithms L of their coarse sums, the scores.
#pragma once

#include "kernels/gpu/ampere.cuh"
#include "kernels/gpu/exp2.cuh"
#include "kernels/gpu/hopper.cuh"
#include "kernels/lightning/tiles.cuh"
#include "kernels/selection/places.cuh"

namespace sala::select {
constexpr int kWarpgroups = 2;
constexpr int kConsumers = kWarpgroups * tiles::kWarpgroup;
constexpr int kThreads = kConsumers + tiles::kWarpgroup;
constexpr int kRows = 128;                     // of query heads, of a warpgroup
constexpr int kSide = 128 * tiles::kRowBytes;  // 128 rows x 64 columns
constexpr int kMerge = kRows * 4 * sizeof(float2);

template <int HS>
struct Plan {
  static constexpr int kTile = HS / 64 * kSide;  // of keys, and of a warpgroup's query heads
  static constexpr int kStages = HS == 64 ? 6 : 4;
  static constexpr int kQueriesAt = kStages * kTile;
  static constexpr int kMergeAt = kQueriesAt + kWarpgroups * kTile;
  static constexpr int kShared = kMergeAt + kWarpgroups * kMerge + kAlignment;
};

#ifdef SALA_SM90A

// Growth of a sum's largest term, in powers of two, that needs no new reference.
constexpr float kSlack = 40;
// Weights are cut at e^80: the coarse scores do not bound the others.
constexpr float kLargest = 80 * kLog2E;

// What a warpgroup's thread knows of its tile. kGroup: the padded group.
template <int HS, int kGroup>
struct Consumer {
  static constexpr int kQueries = kRows / kGroup;  // of the warpgroup
  static constexpr int kStages = Plan<HS>::kStages;

  const SelectInput& input;
  ScoredTile tile;
  int head, group;  // KV head; number of the warpgroup
  Lane at;
  char* shared;
  uint64_t *full, *empty;
  int entered;  // tiles of keys so far
  float factor;

  __device__ __forceinline__ void barrier() const {
    tiles::named_barrier(1 + group, tiles::kWarpgroup);
  }
  // Of column c (0 .. 31) of this thread's accumulators.
  __device__ __forceinline__ int row_of(int c) const { return c / 2 * 8 + at.column + c % 2; }
  // Position of a query of this warpgroup within its document.
  __device__ __forceinline__ int position(int query) const {
    return tile.position + group * kQueries + query;
  }

  __device__ __forceinline__ void load_queries(const __nv_bfloat16* q) const {
    const int heads = input.num_heads / input.num_kv_heads;
    const uint32_t to =
        tiles::shared_address(shared) + Plan<HS>::kQueriesAt + group * Plan<HS>::kTile;
    constexpr int kPieces = HS / 8;
    for (int i = threadIdx.x % tiles::kWarpgroup; i < kRows * kPieces; i += tiles::kWarpgroup) {
      const int row = i / kPieces, piece = i % kPieces;
      const int query = group * kQueries + row / kGroup, member = row % kGroup;
      const bool valid = query < tile.count && member < heads;
      const int64_t token = tile.first + (valid ? query : 0);
      const int64_t from = (token * input.num_heads + head * heads + (valid ? member : 0)) * HS;
      ampere::copy_piece(to + piece / 8 * kSide + tiles::piece_offset(row, piece % 8),
                         q + from + piece * 8, valid);
    }
    ampere::copies_commit();
    ampere::copies_wait<0>();
    hopper::fence_async_shared();
    barrier();
  }

  // Waits for the next tile of keys.
  __device__ __forceinline__ uint32_t enter() {
    const int s = entered % kStages;
    hopper::barrier_wait(&full[s], (entered / kStages) & 1);
    ++entered;
    return tiles::shared_address(shared) + s * Plan<HS>::kTile;
  }
  __device__ __forceinline__ void leave(uint32_t keys) const {
    const uint32_t s = (keys - tiles::shared_address(shared)) / Plan<HS>::kTile;
    if (at.lane == 0) hopper::barrier_arrive(&empty[s]);
  }
  // Starts d = half a tile of keys times the query heads.
  __device__ __forceinline__ void multiply(float (&d)[64], uint32_t keys, int half) const {
    const uint32_t a = keys + half * (kSide / 2);
    const uint32_t b =
        tiles::shared_address(shared) + Plan<HS>::kQueriesAt + group * Plan<HS>::kTile;
    hopper::products_begin();
#pragma unroll
    for (int step = 0; step < HS / 16; ++step) {
      const int at_step = step / 4 * kSide + step % 4 * 32;
      hopper::Product<128>::run<false>(d, hopper::rows_descriptor(a + at_step),
                                       hopper::rows_descriptor(b + at_step), step > 0);
    }
    hopper::products_commit();
  }
  // Calls use(products, tile, half) for the halves of `count` tiles of keys.
  template <class Use>
  __device__ __forceinline__ void walk(int count, const Use& use) {
    for (int i = 0; i < count; ++i) {
      float first[64], second[64];
      const uint32_t keys = enter();
      multiply(first, keys, 0);
      multiply(second, keys, 1);
      hopper::products_wait<1>();
      hopper::pin(first);
      use(first, i, 0);
      hopper::products_wait<0>();
      hopper::pin(second);
      leave(keys);
      use(second, i, 1);
    }
  }

  // L of this thread's columns. Each thread sums its rows of a column against a reference of its
  // own, the largest term so far give or take kSlack.
  __device__ __forceinline__ void normalise(float (&log_sum)[32]) {
    float reference[32], sum[32];
#pragma unroll
    for (int c = 0; c < 32; ++c) {
      reference[c] = -1e30f;
      sum[c] = 0;
    }
    const int last = tile.position + tile.count - 1, half_coarse = 4 * input.stride;
    const int seen_by_all = num_windows(tile.position + 1, half_coarse);
    const int seen = num_windows(last + 1, half_coarse);
    walk((seen + kSelectKeyTile - 1) / kSelectKeyTile, [&](const float(&x)[64], int i, int half) {
      if ((i + 1) * kSelectKeyTile > seen_by_all) {
        // The first query of the warpgroup that sees a row.
        const int seen_from =
            (i * kSelectKeyTile + half * 64 + at.row + 2) * half_coarse - 1 - position(0);
        add_terms(reference, sum, [&](int c, int below) {
          const bool visible = row_of(c) / kGroup >= seen_from + 8 * below * half_coarse;
          return visible ? x[c / 2 * 4 + c % 2 + 2 * below] : -INFINITY;
        });
      } else {
        add_terms(reference, sum,
                  [&](int c, int below) { return x[c / 2 * 4 + c % 2 + 2 * below]; });
      }
    });
    merge(log_sum, reference, sum);
  }

  // Adds the products at(column, 0) and at(column, 1), of two key rows, to the columns' sums.
  template <class At>
  __device__ __forceinline__ void add_terms(float (&reference)[32], float (&sum)[32],
                                            const At& product) const {
    float growth = -1;
#pragma unroll
    for (int c = 0; c < 32; ++c) {
      const float top = fmaxf(product(c, 0), product(c, 1)) * factor;
      growth = fmaxf(growth, top - reference[c]);
    }
    if (growth > kSlack) {
#pragma unroll
      for (int c = 0; c < 32; ++c) {
        const float top = fmaxf(product(c, 0), product(c, 1)) * factor;
        // Each column by itself: its sum must not depend on the tile's other queries.
        if (top - reference[c] > kSlack) {
          sum[c] *= exp2_fast(reference[c] - top);
          reference[c] = top;
        }
      }
    }
#pragma unroll
    for (int c = 0; c < 32; ++c) {
      sum[c] += exp2_fast(fmaf(product(c, 0), factor, -reference[c])) +
                exp2_fast(fmaf(product(c, 1), factor, -reference[c]));
    }
  }

  __device__ __forceinline__ void merge(float (&log_sum)[32], float (&reference)[32],
                                        float (&sum)[32]) const {
    auto* parts =
        reinterpret_cast<float2*>(shared + Plan<HS>::kMergeAt + group * kMerge);  // [warp][row]
#pragma unroll
    for (int c = 0; c < 32; ++c) {
      float top = reference[c];
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
        top = fmaxf(top, __shfl_xor_sync(~0u, top, lanes));
      }
      float total = sum[c] * exp2_fast(reference[c] - top);
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) total += __shfl_xor_sync(~0u, total, lanes);
      if (at.lane < 4) parts[at.warp * kRows + row_of(c)] = make_float2(top, total);
    }
    barrier();
    const int row = threadIdx.x % tiles::kWarpgroup;
    float top = -INFINITY, total = 0;
#pragma unroll
    for (int w = 0; w < 4; ++w) top = fmaxf(top, parts[w * kRows + row].x);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const float2 part = parts[w * kRows + row];
      total += part.y * exp2_fast(part.x - top);
    }
    // Rows beyond the group weigh nothing.
    const bool used = row % kGroup < input.num_heads / input.num_kv_heads;
    parts[row].x = used ? top + log2f(total) : INFINITY;  // read above by this thread alone
    barrier();
#pragma unroll
    for (int c = 0; c < 32; ++c) log_sum[c] = parts[row_of(c)].x;
  }

  // ---- scores

  // Values of one key row and all queries of the warpgroup, as a thread has them: summed over its
  // columns of a query, and after `gather` over the lanes that share the query. Then
  static constexpr int kPartial = kGroup == 16 ? 8 : kGroup == 1 ? 32 : 16;
  static constexpr int kLevels = kGroup >= 8 ? 2 : kGroup == 4 ? 1 : 0;
  static constexpr int kKept = kPartial >> kLevels;
  // is the query of value i:
  __device__ __forceinline__ int query_of(int i) const {
    const int quad = at.lane % 4;
    if constexpr (kGroup >= 8) return quad * kKept + i;
    if constexpr (kGroup == 4) return 2 * (quad % 2 * kKept + i) + quad / 2;
    if constexpr (kGroup == 2) return 4 * i + quad;
    return row_of(i);
  }
  // Adds what two lanes have; each keeps half of the values.
  template <int kCount>
  __device__ __forceinline__ void exchange(float* v, int lanes) const {
    const bool upper = at.lane & lanes;
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const float mine = upper ? v[i + kCount / 2] : v[i];
      const float other = upper ? v[i] : v[i + kCount / 2];
      v[i] = mine + __shfl_xor_sync(~0u, other, lanes);
    }
  }
  // Weights of the key row of accumulators x[0], x[1], x[4], x[5] ...
  __device__ __forceinline__ void weights(float (&w)[kKept], const float* x,
                                          const float (&log_sum)[32]) const {
    float v[kPartial];
#pragma unroll
    for (int i = 0; i < kPartial; ++i) v[i] = 0;
#pragma unroll
    for (int block = 0; block < 16; ++block) {
      float y[2];
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        y[p] = exp2_fast(fminf(fmaf(x[4 * block + p], factor, -log_sum[2 * block + p]), kLargest));
      }
      if constexpr (kGroup == 1) {
        v[2 * block] = y[0];
        v[2 * block + 1] = y[1];
      } else {
        const int i = block * kPartial / 16;
        v[i] = block % (16 / kPartial) == 0 ? y[0] + y[1] : v[i] + (y[0] + y[1]);
      }
    }
    if constexpr (kLevels == 2) exchange<kPartial>(v, 2);
    if constexpr (kLevels == 2) exchange<kPartial / 2>(v, 1);
    if constexpr (kLevels == 1) exchange<kPartial>(v, 1);
#pragma unroll
    for (int i = 0; i < kKept; ++i) w[i] = v[i];
  }
  // Only without a local window can a block be scored while its last windows are to come.
  __device__ __forceinline__ void drop_unseen(float (&w)[kKept], int window) const {
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      if (window >= num_windows(position(query_of(i)) + 1, input.stride)) w[i] = 0;
    }
  }

  __device__ __forceinline__ void score(const float (&log_sum)[32], const FineTiles& fine,
                                        const SelectSlab& slab, int64_t first_row) {
    float best[kKept];
    walk(fine.count, [&](const float(&x)[64], int i, int half) {
      const int block = (fine.first + i) * kSelectBlockTile + at.warp * 8 + at.lane / 4;
      float low[kKept], high[kKept];
      weights(low, x, log_sum);
      weights(high, x + 2, log_sum);
      if (input.local_blocks == 0) {
        drop_unseen(low, 4 * block + 2 * half);
        drop_unseen(high, 4 * block + 2 * half + 1);
      }
      if (half == 0) {
#pragma unroll
        for (int n = 0; n < kKept; ++n) best[n] = fmaxf(low[n], high[n]);
        return;
      }
#pragma unroll
      for (int n = 0; n < kKept; ++n) {
        const float before = __shfl_up_sync(~0u, high[n], 4);
        float value = fmaxf(fmaxf(best[n], low[n]), high[n]);
        if (at.lane >= 4) value = fmaxf(value, before);
        const int64_t row = first_row + group * kQueries + query_of(n);
        slab.scores[row * slab.row_blocks + block] = value;
        if (at.lane >= 28) slab.edges[row * (slab.row_blocks / 8) + block / 8] = high[n];
      }
    });
  }
};

#endif

}  // namespace sala::select
