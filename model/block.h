// A decoder block on one residual stream x (T, C), with r = residual_scale:
//   h = x + r * mixer(norm(x));   y = h + r * down(silu(gate(norm(h))) * up(norm(h))).
#pragma once

#include <functional>

#include "model/unit.h"

namespace sala {

// A block around whatever mixes its normed input.
struct BlockFrame {
  const ModelConfig& config;  // sizes and scales
  const Weights& block;
  Saved* saved;  // as in Unit::forward; backward needs one
  Matmul matmul = {};
};
// The normed input (T, C) to what is added to the stream (T, C). Not wanted: a recompute found the
// sum, and only what a mixer keeps is made again.
using Mix = std::function<at::Tensor(const at::Tensor& normed, bool wants_output)>;
// The gradient (T, C) at Mix's output to that at its input.
using MixBackward = std::function<at::Tensor(const at::Tensor& d_mixed)>;

at::Tensor block_forward(const BlockFrame& frame, const at::Tensor& x, const Mix& mix);
at::Tensor block_backward(const BlockFrame& frame, const at::Tensor& dy, Gradient& block_gradient,
                          const MixBackward& mix_backward);

// A block with the mixer that runs in it: its own, or another (align, score).
struct BlockCall {
  const ModelConfig& config;  // of the mixer; sizes and scales are those of the block
  int64_t layer;
  Mixer mixer;
  const Weights& block;
  const Weights& mixer_weights;
  const Env& env;
  Saved* saved;  // as in Unit::forward; backward needs one
};

at::Tensor block_forward(const BlockCall& call, const at::Tensor& x);
at::Tensor block_backward(const BlockCall& call, const at::Tensor& dy, Gradient& block_gradient,
                          Gradient& mixer_gradient);

class BlockUnit : public Unit {
 public:
  BlockUnit(const ModelConfig& config, int64_t layer) : config_(config), layer_(layer) {}
  at::Tensor forward(const Lease& weights, const at::Tensor& x, const Env& env,
                     Saved* saved) const override;
  at::Tensor backward(const Lease& weights, const at::Tensor& dy, const Env& env, Saved& saved,
                      std::span<Gradient* const> gradients) const override;

 private:
  BlockCall call(const Lease& weights, const Env& env, Saved* saved) const;

  const ModelConfig& config_;
  int64_t layer_;
};

}  // namespace sala
