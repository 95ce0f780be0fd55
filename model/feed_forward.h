// The feed-forward half of a block on its residual stream h (T, C), with r = residual_scale and
// u = norm(h):  y = h + r * down(silu(gate(u)) * up(u)).
//
// Nothing here looks from one token to another. So where gate | up (T, 2F) and their SwiGLU (T, F)
// are not kept for the backward anyway, long sequences take it in tiles of tokens, forward and
// backward: these two and their gradients, 6 F numbers a token, are what a long row would need most
// memory for (12F bytes a token in bf16: 52 GB at 512K tokens of a 1.7B model). As in ALST's tiled
// MLP (arXiv:2506.13996).
#pragma once

#include <ATen/ATen.h>

#include "kernels/fp8.h"
#include "model/block.h"

namespace sala {

// Large enough for products at full speed.
inline constexpr int64_t kFeedForwardTile = 16384;

// How many of `tokens` go through at once, the last tile but for a few as many as the others;
// `keeps`: what is F wide is kept for the backward.
inline int64_t feed_forward_tokens(int64_t tokens, bool keeps) {
  if (keeps || tokens <= kFeedForwardTile) return tokens;
  const int64_t tiles = (tokens + kFeedForwardTile - 1) / kFeedForwardTile;
  return ((tokens + tiles - 1) / tiles + kFp8Multiple - 1) / kFp8Multiple * kFp8Multiple;
}

// h, u (T, C) -> y (T, C), written into h where nothing is saved. A recompute gets nothing.
at::Tensor feed_forward(const BlockFrame& call, const at::Tensor& h, const at::Tensor& u);
// dy (T, C) -> du (T, C). Takes "mlp_input", "gate_up" and "act" from call.saved, the last two
// where they are kept.
at::Tensor feed_forward_backward(const BlockFrame& call, const at::Tensor& dy,
                                 Gradient& block_gradient);

}  // namespace sala
