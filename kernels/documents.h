// Where documents begin in a packed run of tokens. A micro-batch is rows laid end to end along one
// axis T; every document piece in it is a range of that axis, and nothing (attention, recurrent
// state) crosses a boundary. Row starts are boundaries too.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace sala {

struct Documents {
  std::vector<int64_t> offsets;  // D + 1 entries: offsets[0] = 0, offsets[D] = T, strictly rising
  at::Tensor offsets_i32;  // (D + 1) int32 on the device of the tokens (variable-length kernels)
  int64_t longest = 0;     // tokens in the longest document

  // Kernels work on tiles: pieces of up to kTileTokens tokens of one document, from its first on.
  static constexpr int64_t kTileTokens = 64;
  at::Tensor tiles_i32;   // (D + 1) int32, beside offsets_i32: tiles before each document
  int64_t num_tiles = 0;  // of all documents

  int64_t count() const { return static_cast<int64_t>(offsets.size()) - 1; }
  int64_t num_tokens() const { return offsets.empty() ? 0 : offsets.back(); }
  int64_t length(int64_t d) const { return offsets[d + 1] - offsets[d]; }

  // `starts` ascending, starts[0] == 0; `num_tokens` > starts.back().
  static Documents from_starts(const std::vector<int64_t>& starts, int64_t num_tokens,
                               at::Device device);
  static Documents single(int64_t num_tokens, at::Device device);
};

}  // namespace sala
