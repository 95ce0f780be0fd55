// The two ways in which the lightning kernels move tiles and multiply them: Hopper's (copy engine
// fed by one thread of a warpgroup of its own, wgmma) and Ampere's (every thread copies and
// multiplies), which runs on every later GPU too. Same tiles, same fragments, so that one kernel
// body serves both.
//
// Products work on warpgroups of four warps and on matrices 64 rows high; a matrix of 128 columns
// is two tiles, `half` bytes apart. `a` and `b` are addresses in shared memory.
//   by_rows:        d (64 x N)  = a b^T    b has N rows, kWidth columns; a in fragments or shared
//   by_columns:     d (64 x N)  = a b      b has kWidth rows, N columns
//   add_by_columns: d (64 x N) += a b      a in fragments, 64 columns
#pragma once

#include "kernels/gpu/ampere.cuh"
#include "kernels/gpu/hopper.cuh"
#include "kernels/lightning/line.cuh"
#include "kernels/lightning/tiles.cuh"

namespace sala {

// Where the tiles of `kCount` tensors (T, NH, HS) come from.
template <int kCount>
struct MappedInputs {
  CUtensorMap maps[kCount];
};
template <int kCount>
struct PlainInputs {
  const __nv_bfloat16* data[kCount];
};

struct Ampere {
  static constexpr bool kHasProducer = false;
  template <int kCount>
  using Inputs = PlainInputs<kCount>;

  template <int N, int kWidth>
  __device__ static __forceinline__ void by_rows(float* d, uint32_t a, uint32_t b, int b_half,
                                                 const Lane& at, int a_half = kHalfBytes) {
    clear<N>(d);
#pragma unroll
    for (int step = 0; step < kWidth / 16; ++step) {
      uint32_t left[4];
      ampere::load_left(left, a + (step / 4) * a_half, at.warp, at.lane, step % 4);
      add_step_by_rows<N>(d, left, b, b_half, step, at);
    }
  }
  template <int N, int kWidth>
  __device__ static __forceinline__ void by_rows(float* d, const uint32_t (&a)[kWidth / 16][4],
                                                 uint32_t b, int b_half, const Lane& at) {
    clear<N>(d);
#pragma unroll
    for (int step = 0; step < kWidth / 16; ++step) {
      add_step_by_rows<N>(d, a[step], b, b_half, step, at);
    }
  }
  template <int N, int kWidth>
  __device__ static __forceinline__ void by_columns(float* d, uint32_t a, uint32_t b, int b_half,
                                                    const Lane& at) {
    clear<N>(d);
#pragma unroll
    for (int step = 0; step < kWidth / 16; ++step) {
      uint32_t left[4];
      ampere::load_left(left, a + (step / 4) * kHalfBytes, at.warp, at.lane, step % 4);
      add_step<N>(d, left, b, b_half, step, at);
    }
  }
  template <int N>
  __device__ static __forceinline__ void add_by_columns(float* d, const uint32_t (&a)[4][4],
                                                        uint32_t b, int b_half, const Lane& at) {
#pragma unroll
    for (int step = 0; step < 4; ++step) add_step<N>(d, a[step], b, b_half, step, at);
  }
  // Orders writes to shared memory before the products that read them, beside a barrier.
  __device__ static __forceinline__ void fence_shared() {}
  __device__ static __forceinline__ void begin() {}
  __device__ static __forceinline__ void commit() {}
  template <int kPending, int... kCounts>
  __device__ static __forceinline__ void wait(float (&... results)[kCounts]) {
    (static_cast<void>(results), ...);
  }

  // The tiles of a block, kStages at once. `locate` gives the TilePlace of the next tile.
  template <int kCount, int HS, int kStages>
  struct Pipe {
    static constexpr int kTile = HS / 64 * kHalfBytes, kStage = kCount * kTile;
    const PlainInputs<kCount>& inputs;
    char* shared;
    int num_threads, num_tiles, num_heads;
    int started = 0;

    template <class Locate>
    __device__ __forceinline__ void start_next(Locate& locate) {
      if (started < num_tiles) {
        const TilePlace place = locate();
        const uint32_t stage = tiles::shared_address(shared) + (started % kStages) * kStage;
        constexpr int kPieces = HS / 8;  // of a row
        for (int i = threadIdx.x; i < kTileTokens * kPieces; i += num_threads) {
          const int row = i / kPieces, piece = i % kPieces;
          const bool valid = row < place.num_tokens;
          const int64_t token = place.token + (valid ? row : 0);
          const int64_t from = (token * num_heads + place.head) * HS + piece * 8;
          const uint32_t to =
              stage + (piece / 8) * kHalfBytes + tiles::piece_offset(row, piece % 8);
#pragma unroll
          for (int n = 0; n < kCount; ++n) {
            ampere::copy_piece(to + n * kTile, inputs.data[n] + from, valid);
          }
        }
      }
      ++started;
      ampere::copies_commit();
    }
    // Tile i, for everybody in the block: all have left tile i - 1, and tile i is there.
    template <class Locate>
    __device__ __forceinline__ char* enter(int i, Locate& locate) {
      static_assert(kStages == 1 || kStages == 2);
      // Not __syncthreads: warps may come from different branches.
      const auto barrier = [&] { tiles::named_barrier(0, num_threads); };
      if constexpr (kStages == 1) barrier();
      if (kStages == 1 || i == 0) start_next(locate);
      ampere::copies_wait<0>();
      barrier();
      if constexpr (kStages == 2) start_next(locate);
      return shared + (i % kStages) * kStage;
    }
    template <int...>
    __device__ __forceinline__ void clear_behind(char*, int) const {}  // the copies did
    __device__ __forceinline__ void leave(int, const Lane&) {}
  };

 private:
  template <int N>
  __device__ static __forceinline__ void clear(float* d) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) d[i] = 0;
  }
  template <int N>
  __device__ static __forceinline__ void add_step_by_rows(float* d, const uint32_t (&left)[4],
                                                          uint32_t b, int b_half, int step,
                                                          const Lane& at) {
    uint32_t right[4];
#pragma unroll
    for (int n = 0; n < N; n += 16) {
      ampere::load_right_by_rows(right, b + (step / 4) * b_half, n, at.lane, step % 4);
      ampere::multiply(d + n / 2, left, right[0], right[1]);
      ampere::multiply(d + n / 2 + 4, left, right[2], right[3]);
    }
  }
  template <int N>
  __device__ static __forceinline__ void add_step(float* d, const uint32_t (&left)[4], uint32_t b,
                                                  int b_half, int step, const Lane& at) {
    uint32_t right[4];
#pragma unroll
    for (int n = 0; n < N; n += 16) {
      ampere::load_right_by_columns(right, b + (n / 64) * b_half, n % 64, at.lane, step);
      ampere::multiply(d + n / 2, left, right[0], right[1]);
      ampere::multiply(d + n / 2 + 4, left, right[2], right[3]);
    }
  }
};

struct Hopper {
  static constexpr bool kHasProducer = true;
  static constexpr int kClearedBarrier = 15;  // the kernels count theirs from 0
  template <int kCount>
  using Inputs = MappedInputs<kCount>;

#ifdef SALA_SM90A
  template <int N, int kWidth>
  __device__ static __forceinline__ void by_rows(float (&d)[N / 2], uint32_t a, uint32_t b,
                                                 int b_half, const Lane&, int a_half = kHalfBytes) {
    const uint64_t left = hopper::rows_descriptor(a), right = hopper::rows_descriptor(b);
#pragma unroll
    for (int step = 0; step < kWidth / 16; ++step) {
      hopper::Product<N>::template run<false>(
          d, hopper::behind(left, (step / 4) * a_half + (step % 4) * 32),
          hopper::behind(right, (step / 4) * b_half + (step % 4) * 32), step > 0);
    }
  }
  template <int N, int kWidth>
  __device__ static __forceinline__ void by_rows(float (&d)[N / 2],
                                                 const uint32_t (&a)[kWidth / 16][4], uint32_t b,
                                                 int b_half, const Lane&) {
    const uint64_t right = hopper::rows_descriptor(b);
#pragma unroll
    for (int step = 0; step < kWidth / 16; ++step) {
      hopper::Product<N>::template run<false>(
          d, a[step], hopper::behind(right, (step / 4) * b_half + (step % 4) * 32), step > 0);
    }
  }
  template <int N, int kWidth>
  __device__ static __forceinline__ void by_columns(float (&d)[N / 2], uint32_t a, uint32_t b,
                                                    int b_half, const Lane&) {
    const uint64_t left = hopper::rows_descriptor(a);
    const uint64_t right = hopper::columns_descriptor(b, b_half);
#pragma unroll
    for (int step = 0; step < kWidth / 16; ++step) {
      hopper::Product<N>::template run<true>(
          d, hopper::behind(left, (step / 4) * kHalfBytes + (step % 4) * 32),
          hopper::behind(right, step * 16 * tiles::kRowBytes), step > 0);
    }
  }
  template <int N>
  __device__ static __forceinline__ void add_by_columns(float (&d)[N / 2],
                                                        const uint32_t (&a)[4][4], uint32_t b,
                                                        int b_half, const Lane&) {
    const uint64_t right = hopper::columns_descriptor(b, b_half);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      hopper::Product<N>::template run<true>(
          d, a[step], hopper::behind(right, step * 16 * tiles::kRowBytes), true);
    }
  }
  __device__ static __forceinline__ void fence_shared() { hopper::fence_async_shared(); }
  __device__ static __forceinline__ void begin() { hopper::products_begin(); }
  __device__ static __forceinline__ void commit() { hopper::products_commit(); }
  // Waits until at most `kPending` committed groups are unfinished; `results` are of finished ones.
  template <int kPending, int... kCounts>
  __device__ static __forceinline__ void wait(float (&... results)[kCounts]) {
    hopper::products_wait<kPending>();
    (hopper::pin(results), ...);
  }

  template <int kCount, int HS, int kStages>
  struct Pipe {
    static constexpr int kTile = HS / 64 * kHalfBytes, kStage = kCount * kTile;
    char* shared;
    uint64_t *full, *empty;  // kStages each
    int num_consumers;       // threads, the first of the block

    __device__ __forceinline__ void init() {
      for (int s = 0; s < kStages; ++s) {
        hopper::barrier_init(&full[s], 1);
        hopper::barrier_init(&empty[s], num_consumers / 32);
      }
      hopper::barrier_init_done();
    }
    // One thread of the producer's warpgroup.
    template <class Locate>
    __device__ __forceinline__ void produce(const MappedInputs<kCount>& inputs, int num_tiles,
                                            Locate locate) {
      for (int i = 0; i < num_tiles; ++i) {
        const int s = i % kStages;
        if (i >= kStages) hopper::barrier_wait(&empty[s], (i / kStages - 1) & 1);
        hopper::barrier_expect(&full[s], kStage);
        const TilePlace place = locate();
#pragma unroll
        for (int n = 0; n < kCount; ++n) {
#pragma unroll
          for (int half = 0; half < HS / 64; ++half) {
            hopper::copy_box(shared + s * kStage + n * kTile + half * kHalfBytes, &inputs.maps[n],
                             64 * half, place.head, place.token, &full[s]);
          }
        }
      }
    }
    template <class Locate>
    __device__ __forceinline__ char* enter(int i, Locate&) {
      const int s = i % kStages;
      hopper::barrier_wait(&full[s], (i / kStages) & 1);
      return shared + s * kStage;
    }
    // A box is 64 tokens, whatever document they are of. In tensors that a product sums over
    // tokens, the rows behind the tile's own become zeros: a weight of zero would let infinities
    // through. For all consumers together, at a tile that they have entered.
    template <int... kTensors>
    __device__ __forceinline__ void clear_behind(char* stage, int num_tokens) const {
      if (num_tokens == kTileTokens) return;
      const int begin = num_tokens * tiles::kRowBytes + static_cast<int>(threadIdx.x) * 16;
      for (int half = 0; half < HS / 64; ++half) {
        for (int i = begin; i < kHalfBytes; i += num_consumers * 16) {
          ((*reinterpret_cast<uint4*>(stage + kTensors * kTile + half * kHalfBytes + i) = uint4{}),
           ...);
        }
      }
      hopper::fence_async_shared();
      tiles::named_barrier(kClearedBarrier, num_consumers);
    }
    __device__ __forceinline__ void leave(int i, const Lane& at) {
      if (at.lane == 0) hopper::barrier_arrive(&empty[i % kStages]);
    }
  };
#endif
};

}  // namespace sala
