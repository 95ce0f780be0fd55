// A block between two mixers, its own attention and a linear one, with a gate g in [0, 1]:
//   mixed = g attention(norm(x)) + (1 - g) linear(norm(x)),
// everything else as in model/block.h. All weights are frozen; what has a gradient is the input and
// the gate: dg = sum over tokens of <d_mixed, attention - linear>. For choosing layers by one gate
// for each of them, learned together.
#pragma once

#include "model/block.h"

namespace sala {

struct GatedCall {
  int64_t layer;
  double gate;
  const ModelConfig& config;         // of the model; config.mixers[layer] is the attention
  const ModelConfig& linear_config;  // of the lightning mixer
  const Weights& block;
  const Weights& attention;
  const Weights& linear;
  const Env& env;
  const Env& linear_env;
};

// What a gated block keeps; a recompute works as a block's own (model/unit.h).
struct GatedSaved {
  Saved block, attention, linear;
  void trim(Recompute level);
};

// x, y (T, C). `saved` gets x as well. One that was trimmed is made whole, and y is undefined.
at::Tensor gated_forward(const GatedCall& call, const at::Tensor& x, GatedSaved& saved);

struct GatedGradient {
  at::Tensor dx;        // (T, C)
  at::Tensor d_gate_T;  // (T) fp32 (fp64 for fp64); the gate's gradient is their sum
};
// Uses `saved` up.
GatedGradient gated_backward(const GatedCall& call, const at::Tensor& dy, GatedSaved& saved);

}  // namespace sala
