// Units: the pieces that a model is a list of — embedding, block 0 … L-1, final norm. The training
// step runs them one after another and differentiates each on its own (trainer/step.cpp):
// LibTorch's autograd works inside a unit, never across units. So a unit's weights are needed only
// while it runs.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <span>
#include <vector>

#include "kernels/collectives.h"
#include "model/batch.h"
#include "model/config.h"
#include "model/layout.h"
#include "model/rope.h"

namespace sala {

// What generation keeps of one layer. One sequence.
struct LayerState {
  at::Tensor k, v;   // (capacity, NKV, HS); softmax layers
  at::Tensor state;  // (1, NH, HS, HS) fp32; lightning layers
};

struct DecodeState {
  std::vector<LayerState> layers;
  int64_t num_tokens = 0;      // tokens seen before this call
  int64_t planned_tokens = 0;  // of the whole prompt: chunks of it decide as one call would
};

// Looks into every mixer as it runs: layer, input (normed), attention output before gate, norm and
// o_proj (T, NH * HS), mixer output (T, C).
using MixerTap = std::function<void(int64_t layer, const at::Tensor& input,
                                    const at::Tensor& attention, const at::Tensor& output)>;

// What a forward pass knows besides weights and activations. Made by Model::env once per
// micro-batch.
struct Env {
  const Batch* batch = nullptr;
  int64_t planned_tokens = 0;           // while a prompt is fed in chunks: its length, else 0
  Documents key_docs;                   // equals batch->docs unless decoding continues kept state
  RopeTable full_rope, lightning_rope;  // undefined where the model does not use them
  bool sparse = false;                  // sparse layers: documents of dense_len and more go sparse
  Comm* sequence = nullptr;  // ranks that share one sequence; nullptr = this rank has it whole
  DecodeState* decode = nullptr;
  const MixerTap* tap = nullptr;
};

// What backward needs of one unit. `keep` outlives recomputation: block lists are selected once.
struct Saved {
  at::Tensor x, y;  // input leaf and output of the graph (recompute: y undefined)
  std::vector<at::Tensor> keep;
};

class Unit {
 public:
  virtual ~Unit() = default;
  // x (T, C), undefined for the embedding; returns (T, C). `weights` in the order of `parts`.
  virtual at::Tensor forward(std::span<const Weights* const> weights, const at::Tensor& x,
                             const Env& env, Saved* saved) const = 0;
  std::vector<size_t> parts;  // which parts of the model it reads
};

}  // namespace sala
