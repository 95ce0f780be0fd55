// The line of tiles that the lightning kernels work on (launch.h): places on it, the
// decay tables of a head, and the states that enter a range.
#pragma once

#include <cuda_runtime.h>

#include "kernels/lightning/launch.h"

namespace sala {

constexpr int kTileTokens = kLightningTileTokens;
constexpr float kDeadBits = 25;  // 2^-25 and less is lost in an fp32 sum

// The first tile of a range on the line of all heads' tiles.
__host__ __device__ inline int64_t range_begin(int64_t range, const LightningLine& line) {
  return range * (static_cast<int64_t>(line.num_heads) * line.num_tiles) / line.num_ranges;
}

// Where the rows of a tile come from. Behind them lie another document's tokens, or none.
struct TilePlace {
  int token, head, num_tokens;
};

// One tile of the line: its head and document and where they lie.
struct Tile {
  int head, number;  // number: within the head
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
    number = static_cast<int>(place % line.num_tiles);
    int low = 0, high = line.num_docs;  // tiles[low] <= number < tiles[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (line.tiles[middle] <= number ? low : high) = middle;
    }
    set_document(low, line);
  }
  __device__ __forceinline__ void next(const LightningLine& line) {
    if (number < doc_last_tile) {
      ++number;
      return;
    }
    if (++number == line.num_tiles) {
      number = 0;
      ++head;
      if (head < line.num_heads) set_document(0, line);
    } else {
      set_document(doc + 1, line);
    }
  }
  __device__ __forceinline__ void previous(const LightningLine& line) {
    if (number > doc_first_tile) {
      --number;
      return;
    }
    if (--number < 0) {
      number = line.num_tiles - 1;
      --head;
      if (head >= 0) set_document(line.num_docs - 1, line);
    } else {
      set_document(doc - 1, line);
    }
  }
  __device__ __forceinline__ int begin() const {
    return doc_begin + (number - doc_first_tile) * kTileTokens;
  }
  __device__ __forceinline__ int length() const { return min(kTileTokens, doc_end - begin()); }
  __device__ __forceinline__ TilePlace place() const { return {begin(), head, length()}; }
  __device__ __forceinline__ bool starts_document() const { return number == doc_first_tile; }
  __device__ __forceinline__ bool ends_document() const { return number == doc_last_tile; }
  __device__ __forceinline__ int64_t line_place(int tile_of_head, const LightningLine& line) const {
    return static_cast<int64_t>(head) * line.num_tiles + tile_of_head;
  }
  // The state that is given to the document's head; null: none, so zero.
  __device__ __forceinline__ const float* given(int HS, const LightningLine& line,
                                                const LightningStates& states) const {
    const int place = doc - states.first_given;
    if (place < 0 || place >= states.num_given) return nullptr;
    return states.given + state_offset(place, HS, line);
  }
  // Where the state goes that leaves the document's head; null: nobody wants it.
  __device__ __forceinline__ float* leaving(int HS, const LightningLine& line,
                                            const LightningStates& states) const {
    if (doc >= states.num_leaving) return nullptr;
    return states.leaving + state_offset(doc, HS, line);
  }
  // Of (documents, NH, HS, HS).
  __device__ __forceinline__ int64_t state_offset(int place, int HS,
                                                  const LightningLine& line) const {
    return (static_cast<int64_t>(place) * line.num_heads + head) * HS * HS;
  }
};

// What the tokens beside a border contribute to its state: how many tiles the decay lets through of
// the `span` tiles that the range has of the document, and how many blocks share them.
struct Window {
  static constexpr int kTilesPerPart = 32;
  int num_tiles, num_parts;

  __device__ __forceinline__ Window(float rate, int64_t span) {
    const float reach = fminf(kDeadBits / rate / kTileTokens, 1e8f) + 1;
    num_tiles = static_cast<int>(min(static_cast<int64_t>(reach), span));
    num_parts = min(kLightningParts, (num_tiles + kTilesPerPart - 1) / kTilesPerPart);
  }
};

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
  const int64_t here = tile.line_place(tile.number, line);
  for (int64_t place = here; place > document;) {
    const float distance = static_cast<float>(here - place) * kTileTokens;
    if (decay.rate * distance > kDeadBits) return;
    const int64_t begin = range_begin(--range, line);
    add_border<HS>(range, place - max(begin, document), distance, states, decay, add);
    place = begin;
  }
  const float* given = tile.given(HS, line, states);
  if (given == nullptr) return;
  const float distance = static_cast<float>(here - document) * kTileTokens;
  add(given, decay.far(distance), states.given_transposed);
}

// The same for what enters the last tile of `range` from the right.
template <int HS, class Add>
__device__ __forceinline__ void states_from_right(int64_t range, const Tile& tile,
                                                  const LightningLine& line,
                                                  const LightningStates& states,
                                                  const DecayTable& decay, const Add& add) {
  const int64_t document_end = tile.line_place(tile.doc_last_tile, line) + 1;
  const int64_t here = tile.line_place(tile.number, line) + 1;
  for (int64_t place = here; place < document_end; ++range) {
    const float distance = static_cast<float>(place - here) * kTileTokens;
    if (decay.rate * distance > kDeadBits) return;
    const int64_t end = range_begin(range + 2, line);
    add_border<HS>(range, min(end, document_end) - place, distance, states, decay, add);
    place = end;
  }
  const float* given = tile.given(HS, line, states);
  if (given == nullptr) return;
  const int next_token = min(tile.begin() + kTileTokens, tile.doc_end);
  add(given, decay.far(static_cast<float>(tile.doc_end - next_token)) / line.scale,
      states.given_transposed);
}

}  // namespace sala
