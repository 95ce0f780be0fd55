// The three mixers. Each takes the normed input x (T, C) and gives the mixer's output (T, C),
// o_proj included:
//   q, k, v, z = x W;  q, k normed per head and rotated;  o = attention(q, k, v);
//   y = o_proj(norm(o) * sigmoid(z)),
// where configuration and mixer say which of QK-norm, rotation, gate and output norm there are.
// Layer maths: MiniCPM-SALA's released modelling code (arXiv:2602.11761).
//   full: causal softmax attention with RoPE (and QK-norm where the source has it).
//   sparse: the same without positions (HyPE), with a gate; InfLLM-V2 block selection for documents
//     of dense_len tokens and more where env.sparse is set.
//   lightning: decayed linear attention, QK-norm, RoPE, output norm over all heads, gate.
#pragma once

#include <ATen/ATen.h>

#include "model/unit.h"

namespace sala {

struct MixerCall {
  const ModelConfig& config;
  const Weights& weights;
  const Env& env;
  int64_t layer;
  Saved* saved;              // may be nullptr in a forward that no backward follows
  bool wants_output = true;  // forward: a recompute may do without o_proj's product
  bool wants_dx = true;      // backward: false where only weights train (align)
};

// y (T, C), undefined where it is not wanted.
at::Tensor mixer_forward(Mixer mixer, const MixerCall& call, const at::Tensor& x);
// dx (T, C) at the mixer's normed input, undefined where it is not wanted, from dy (T, C) at its
// output. Uses up what the forward kept in call.saved.
at::Tensor mixer_backward(Mixer mixer, const MixerCall& call, const at::Tensor& dy,
                          Gradient& gradient);

}  // namespace sala
