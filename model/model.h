// A language model: a configuration, its parts (flat parameter buffers) and its units. Teacher and
// hybrid are both this; they differ in config.mixers. No ranks, no files, no optimizer.
#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <vector>

#include "model/unit.h"

namespace sala {

class Model {
 public:
  // Zero-filled parts of `dtype` on `device`.
  Model(ModelConfig config, at::ScalarType dtype, at::Device device);
  Model(const Model&) = delete;  // units refer to config_
  Model& operator=(const Model&) = delete;

  const ModelConfig& config() const { return config_; }
  const std::vector<std::unique_ptr<Unit>>& units() const { return units_; }
  std::vector<Weights>& parts() { return parts_; }
  const std::vector<Weights>& parts() const { return parts_; }
  std::vector<Weights*> part_pointers();
  Weights& block(int64_t layer) { return parts_[1 + 2 * layer]; }
  Weights& mixer(int64_t layer) { return parts_[2 + 2 * layer]; }
  Weights& head() { return parts_.back(); }
  Weights& embedding() { return parts_.front(); }

  // The vocabulary projection (V, C): lm_head, or the embedding where tied; and the part it lies
  // in.
  size_t head_part() const;
  size_t head_entry() const;
  const at::Tensor& head_weight() const;

  // `sparse`: documents of dense_len and more use block-sparse attention on sparse layers.
  Env env(const Batch& batch, bool sparse, DecodeState* decode = nullptr) const;
  std::vector<const Weights*> unit_weights(size_t unit) const;

  // All units without gradient: final-norm output (T, C). Logits = hidden head_weight^T
  // logit_scale.
  at::Tensor hidden(const Env& env) const;
  at::Tensor logits(const at::Tensor& hidden) const;  // (rows, V) fp32
  // Units [first, last) without gradient; x is unit `first`'s input.
  at::Tensor run_units(size_t first, size_t last, at::Tensor x, const Env& env) const;

  // A block with a mixer that is not its own (align, score): x (T, C) -> (T, C).
  at::Tensor block_with_mixer(int64_t layer, Mixer mixer, const Weights& mixer_weights,
                              const at::Tensor& x, const Env& env) const;

 private:
  ModelConfig config_;
  std::vector<Weights> parts_;
  std::vector<std::unique_ptr<Unit>> units_;
};

// A batch of one document, for evaluation and generation; targets and weights are undefined.
Batch single_document(const std::vector<int64_t>& ids, int64_t first_position, at::Device device);

}  // namespace sala
