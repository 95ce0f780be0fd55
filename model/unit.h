// Units: the pieces that a model is a list of — embedding, block 0 … L-1 — and the final norm. A
// unit holds no weights: whoever runs it leases them (weights/lender.h), and they are needed only
// while it runs. Forward and backward are both written out; nothing here records a graph.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <span>
#include <vector>

#include "kernels/selection/loss.h"
#include "model/batch.h"
#include "model/config.h"
#include "model/rope.h"
#include "model/saved.h"
#include "model/weights/gradient.h"
#include "model/weights/lender.h"
#include "model/weights/products.h"

namespace sala {

struct CachePass;  // model/generation/cache.h

// Looks into every mixer as its forward runs for the first time: layer, input (normed), attention
// output before gate, norm and o_proj (T, NH * HS), mixer output (T, C).
using MixerTap = std::function<void(int64_t layer, const at::Tensor& input,
                                    const at::Tensor& attention, const at::Tensor& output)>;

// What the sparse layers' backward does for their choice of blocks (kernels/selection/loss.h), and
// the sums of what it found: kNumSelectionSums fp64 on the device, undefined before the first
// layer.
struct SelectionTeaching {
  SelectionLossOptions options;
  at::Tensor sums;
};

// What a pass knows besides weights and activations. Made by Model::env once per micro-batch.
struct Env {
  const Batch* batch = nullptr;
  int64_t planned_tokens = 0;  // while a prompt is fed in chunks: its length, else 0
  // What the queries of batch->docs may look at: the same tokens, and before them what was fed
  // before or what the first document has on earlier ranks. Not of a decode step.
  Documents key_docs;
  RopeTable full_rope, lightning_rope;  // undefined where the model does not use them
  bool sparse = false;                  // sparse layers: documents of dense_len and more go sparse
  Matmul matmul;                        // of the blocks' products with their matrices
  const CachePass* cached = nullptr;    // tokens that are kept: generation
  const MixerTap* tap = nullptr;
  SelectionTeaching* selection = nullptr;  // null: selection is not taught
};

class Unit {
 public:
  virtual ~Unit() = default;
  // x (T, C), undefined for the embedding; returns y (T, C). `weights` in the order of `parts`.
  // `saved`: keeps what backward needs; nullptr: no backward follows. One that was trimmed finds
  // what is left, makes the rest again with the same bits, and is whole after; what backward has no
  // use for is skipped, and y is undefined.
  virtual at::Tensor forward(const Lease& weights, const at::Tensor& x, const Env& env,
                             Saved* saved) const = 0;
  // dy (T, C) at the output. Returns dx (T, C), undefined for the embedding; gradients of weights
  // are added to `gradients`, one for each part in order. saved.input is x, set by the caller; the
  // rest of `saved` is used up.
  virtual at::Tensor backward(const Lease& weights, const at::Tensor& dy, const Env& env,
                              Saved& saved, std::span<Gradient* const> gradients) const = 0;

  std::vector<size_t> parts;  // which parts of the model it reads
};

}  // namespace sala
