// What a block keeps between its forward and its backward, from the configuration alone: the list
// that Saved (model/saved.h) will hold. The memory plan adds these up; a test compares them with
// what the passes really keep.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/saved.h"
#include "model/weights/products.h"

namespace sala {

// The tokens that a rank runs at once.
struct PassShape {
  int64_t tokens = 0;
  int64_t value_bytes = 2;  // of an activation: 2 for bf16, 4 for fp32
  bool selects = false;     // documents are long enough for block lists on sparse layers
};

struct KeptTensor {
  std::string name;
  int64_t num_bytes = 0;
  Cost cost;
};

std::vector<KeptTensor> kept_tensors(const ModelConfig& config, Mixer mixer,
                                     const PassShape& shape);
// Of one block at this level of recomputing, its input included.
int64_t kept_bytes(const ModelConfig& config, Mixer mixer, const PassShape& shape,
                   Recompute recompute);
// What a block's passes hold for a moment beside what they keep: at most this.
int64_t forward_moment_bytes(const ModelConfig& config, Mixer mixer, const PassShape& shape);
// What was forgotten and is made again is part of it.
int64_t backward_moment_bytes(const ModelConfig& config, Mixer mixer, const PassShape& shape,
                              Recompute recompute);
// What a block's largest product in FP8 needs beside all of these: its operands, and what adding to
// the gradients of weights takes; 0: it has none.
int64_t fp8_moment_bytes(const ModelConfig& config, Mixer mixer, const PassShape& shape,
                         Recompute recompute, const Matmul& matmul);
// What teaching a sparse layer to select (kernels/selection/loss.h) holds for a moment: queries of
// `tokens` at once, the keys that they see, in documents of `length`.
int64_t selection_moment_bytes(const ModelConfig& config, int64_t tokens, int64_t key_tokens,
                               int64_t length, bool cuda);
// All that align's passes hold at once: a teacher's layer, and the mixer that imitates its own.
int64_t align_moment_bytes(const ModelConfig& source, const ModelConfig& config, Mixer mixer,
                           const PassShape& shape);

}  // namespace sala
