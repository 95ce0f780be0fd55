// What the kernels of lightning attention share: the walk over the tiles of a range, decay
// tables, states entering a range, and the moves of accumulators to memory.
#pragma once

#include <climits>

#include "kernels/hopper.cuh"
#include "kernels/lightning_launch.h"

namespace sala {

constexpr int kTileTokens = kLightningTileTokens;
constexpr int kHalfBytes = kTileTokens * hopper::kRowBytes;  // 64 tokens x 64 columns
constexpr int kAlignment = 1024;     // of tiles; dynamic shared memory has this much to spare
constexpr float kDeadExponent = 25;  // 2^-25 and less is lost in an fp32 sum

// The first tile of a range on the line of all heads' tiles.
__host__ __device__ inline int64_t range_begin(int64_t range, const LightningLine& line) {
  return range * (static_cast<int64_t>(line.num_heads) * line.num_tiles) / line.num_ranges;
}

// One tile of the line: its head and document and where they lie.
struct Tile {
  int head, tile;  // tile: number within the head
  int doc, doc_first_tile, doc_last_tile;
  int doc_begin, doc_end;  // tokens

  __device__ __forceinline__ void set_document(int d, const LightningLine& line) {
    doc = d;
    doc_first_tile = line.tiles[d];
    doc_last_tile = line.tiles[d + 1] - 1;
    doc_begin = line.offsets[d];
    doc_end = line.offsets[d + 1];
  }
  __device__ __forceinline__ void seek(int64_t place, const LightningLine& line) {
    head = static_cast<int>(place / line.num_tiles);
    tile = static_cast<int>(place % line.num_tiles);
    int low = 0, high = line.num_docs;  // tiles[low] <= tile < tiles[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (line.tiles[middle] <= tile ? low : high) = middle;
    }
    set_document(low, line);
  }
  __device__ __forceinline__ void next(const LightningLine& line) {
    if (tile < doc_last_tile) {
      ++tile;
      return;
    }
    if (++tile == line.num_tiles) {
      tile = 0;
      ++head;
      if (head < line.num_heads) set_document(0, line);
    } else {
      set_document(doc + 1, line);
    }
  }
  __device__ __forceinline__ void previous(const LightningLine& line) {
    if (tile > doc_first_tile) {
      --tile;
      return;
    }
    if (--tile < 0) {
      tile = line.num_tiles - 1;
      --head;
      if (head >= 0) set_document(line.num_docs - 1, line);
    } else {
      set_document(doc - 1, line);
    }
  }
  __device__ __forceinline__ int begin() const {
    return doc_begin + (tile - doc_first_tile) * kTileTokens;
  }
  __device__ __forceinline__ int length() const { return min(kTileTokens, doc_end - begin()); }
  __device__ __forceinline__ bool starts_document() const { return tile == doc_first_tile; }
  __device__ __forceinline__ bool ends_document() const { return tile == doc_last_tile; }
  __device__ __forceinline__ int64_t line_place(int tile_of_head, const LightningLine& line) const {
    return static_cast<int64_t>(head) * line.num_tiles + tile_of_head;
  }
  // Of (D, NH, HS, HS).
  __device__ __forceinline__ int64_t state_offset(int HS, const LightningLine& line) const {
    return (static_cast<int64_t>(doc) * line.num_heads + head) * HS * HS;
  }
};

// What the tokens beside a border contribute to its state: how many tiles the decay lets through of
// the `span` tiles that the range has of the document, and how many blocks share them.
struct Window {
  static constexpr int kTilesPerPart = 32;
  int num_tiles, num_parts;

  __device__ __forceinline__ Window(float rate, int64_t span) {
    const float reach = fminf(kDeadExponent / rate / kTileTokens, 1e8f) + 1;
    num_tiles = static_cast<int>(min(static_cast<int64_t>(reach), span));
    num_parts = min(kLightningParts, (num_tiles + kTilesPerPart - 1) / kTilesPerPart);
  }
};

__device__ __forceinline__ char* align_shared(char* raw) {
  const uint32_t behind = hopper::shared_address(raw) % kAlignment;
  return raw + (behind == 0 ? 0 : kAlignment - behind);
}

// lambda^m for m = -64 .. 65 of one head, zero where m is negative: a mask and a decay at once, and
// no positive exponent is ever taken.
struct DecayTable {
  static constexpr int kSize = 130, kZero = 64;
  float* values;  // shared
  float rate;     // slope * log2(e)

  __device__ __forceinline__ void fill(float head_rate, int thread, int num_threads) {
    rate = head_rate;
    for (int i = thread; i < kSize; i += num_threads) {
      values[i] = i < kZero ? 0.f : exp2f(-rate * static_cast<float>(i - kZero));
    }
  }
  __device__ __forceinline__ float operator[](int m) const { return values[kZero + m]; }
  __device__ __forceinline__ float far(float distance) const { return exp2f(-rate * distance); }
};

// A warp's place among the fragments of its warpgroup (hopper.cuh).
struct Lane {
  int warp, lane, row, column;  // warp 0 .. 3; row of its first accumulator, column of its first

  __device__ __forceinline__ explicit Lane(int thread)
      : warp(thread / 32), lane(thread % 32), row(warp * 16 + lane / 4), column(2 * (lane % 4)) {}
};

// Fragments of the transpose of a tile (64 tokens x 64 features), each token weighed: rows are
// features, the reduction runs over tokens. weight(j) is the weight of token j.
template <class Weight>
__device__ __forceinline__ void load_weighted_transpose(uint32_t (&a)[4][4], const char* tile,
                                                        const Lane& at, const Weight& weight) {
  const int token = (at.lane & 7) + ((at.lane >> 4) & 1) * 8;
  const int piece = at.warp * 2 + ((at.lane >> 3) & 1);
  const uint32_t base = hopper::shared_address(tile);
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    hopper::load_matrices_transposed(a[s], base + hopper::piece_offset(16 * s + token, piece));
    const int j = 16 * s + at.column;
    const float w[4] = {weight(j), weight(j + 1), weight(j + 8), weight(j + 9)};
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float low = __uint_as_float(a[s][r] << 16);
      const float high = __uint_as_float(a[s][r] & 0xffff0000u);
      a[s][r] = hopper::pack(low * w[(r / 2) * 2], high * w[(r / 2) * 2 + 1]);
    }
  }
}

// Accumulators of 64 rows x 64 columns as fragments of a left operand.
__device__ __forceinline__ void as_left_operand(uint32_t (&a)[4][4], const float* p) {
#pragma unroll
  for (int s = 0; s < 4; ++s) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int i = (2 * s + r / 2) * 4 + (r % 2) * 2;
      a[s][r] = hopper::pack(p[i], p[i + 1]);
    }
  }
}

// Accumulators of 64 x 64, rounded, to a swizzled tile: the warp's 16 rows go to first_row and on.
__device__ __forceinline__ void store_fragments(char* tile, int first_row, const Lane& at,
                                                const float* x, float factor) {
#if __CUDA_ARCH__ >= 900
  const int row = first_row + (at.lane & 15);
  const uint32_t base = hopper::shared_address(tile);
#pragma unroll
  for (int b = 0; b < 8; b += 2) {
    const float* y = x + 4 * b;
    hopper::store_matrices(
        base + hopper::piece_offset(row, b + at.lane / 16),
        hopper::pack(y[0] * factor, y[1] * factor), hopper::pack(y[2] * factor, y[3] * factor),
        hopper::pack(y[4] * factor, y[5] * factor), hopper::pack(y[6] * factor, y[7] * factor));
  }
#else
#pragma unroll
  for (int i = 0; i < 32; i += 2) {
    const int row = first_row + at.lane / 4 + ((i / 2) % 2) * 8;
    *reinterpret_cast<uint32_t*>(tile + hopper::piece_offset(row, i / 4) + at.lane % 4 * 4) =
        hopper::pack(x[i] * factor, x[i + 1] * factor);
  }
#endif
}

// Accumulators of 64 tokens x 64 columns to memory as bf16, in rows of 128 contiguous bytes, by way
// of 2 KB of shared memory that belongs to the warp. `out`: the tile's first token.
__device__ __forceinline__ void store_tokens(__nv_bfloat16* out, int64_t token_stride, int num_rows,
                                             char* warp_staging, const Lane& at, const float* x,
                                             float factor) {
  __syncwarp();
  store_fragments(warp_staging, 0, at, x, factor);
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = i * 4 + at.lane / 8, piece = at.lane % 8;
    const uint4 value =
        *reinterpret_cast<const uint4*>(warp_staging + hopper::piece_offset(row, piece));
    const int token = at.warp * 16 + row;
    if (token < num_rows) {
      *reinterpret_cast<uint4*>(out + token * token_stride + piece * 8) = value;
    }
  }
}

// x += factor * the 64 x 64 block at (row, column) of a (HS, HS) fp32 state.
__device__ __forceinline__ void add_state(float* x, const float* state, int HS, int row, int column,
                                          bool transposed, float factor, const Lane& at) {
  row += at.row;
  column += at.column;
  if (transposed) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      x[i] += factor * state[(column + (i / 4) * 8 + i % 2) * HS + row + ((i / 2) % 2) * 8];
    }
    return;
  }
  float2 y[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    y[i] =
        *reinterpret_cast<const float2*>(state + (row + (i % 2) * 8) * HS + column + (i / 2) * 8);
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    x[2 * i] += factor * y[i].x;
    x[2 * i + 1] += factor * y[i].y;
  }
}
__device__ __forceinline__ void put_state(float* state, const float* x, int HS, int row, int column,
                                          float factor, const Lane& at) {
#pragma unroll
  for (int i = 0; i < 32; i += 2) {
    const int r = row + at.row + ((i / 2) % 2) * 8, c = column + (i / 4) * 8 + at.column;
    *reinterpret_cast<float2*>(state + r * HS + c) = make_float2(x[i] * factor, x[i + 1] * factor);
  }
}

// Calls add(state, factor, transposed) for the summands of a border's state.
template <int HS, class Add>
__device__ __forceinline__ void add_border(int64_t border, int64_t span, float distance,
                                           const LightningStates& states, const DecayTable& decay,
                                           const Add& add) {
  const int num_parts = Window(decay.rate, span).num_parts;
  for (int part = 0; part < num_parts; ++part) {
    add(states.borders + (border * kLightningParts + part) * HS * HS, decay.far(distance), false);
  }
}

// Calls add for everything that enters the first tile of `range` from the left: the borders to its
// left, nearest first, and the document's given state.
template <int HS, class Add>
__device__ __forceinline__ void states_from_left(int64_t range, const Tile& tile,
                                                 const LightningLine& line,
                                                 const LightningStates& states,
                                                 const DecayTable& decay, const Add& add) {
  const int64_t document = tile.line_place(tile.doc_first_tile, line);
  const int64_t here = tile.line_place(tile.tile, line);
  for (int64_t place = here; place > document;) {
    const float distance = static_cast<float>(here - place) * kTileTokens;
    if (decay.rate * distance > kDeadExponent) return;
    const int64_t begin = range_begin(--range, line);
    add_border<HS>(range, place - max(begin, document), distance, states, decay, add);
    place = begin;
  }
  if (states.given == nullptr) return;
  const float distance = static_cast<float>(here - document) * kTileTokens;
  add(states.given + tile.state_offset(HS, line), decay.far(distance), states.given_transposed);
}

// The same for what enters the last tile of `range` from the right.
template <int HS, class Add>
__device__ __forceinline__ void states_from_right(int64_t range, const Tile& tile,
                                                  const LightningLine& line,
                                                  const LightningStates& states,
                                                  const DecayTable& decay, const Add& add) {
  const int64_t document_end = tile.line_place(tile.doc_last_tile, line) + 1;
  const int64_t here = tile.line_place(tile.tile, line) + 1;
  for (int64_t place = here; place < document_end; ++range) {
    const float distance = static_cast<float>(place - here) * kTileTokens;
    if (decay.rate * distance > kDeadExponent) return;
    const int64_t end = range_begin(range + 2, line);
    add_border<HS>(range, min(end, document_end) - place, distance, states, decay, add);
    place = end;
  }
  if (states.given == nullptr) return;
  const int next_token = min(tile.begin() + kTileTokens, tile.doc_end);
  add(states.given + tile.state_offset(HS, line),
      decay.far(static_cast<float>(tile.doc_end - next_token)) / line.scale,
      states.given_transposed);
}

}  // namespace sala
