// A language model: a configuration, the layouts of its parts and its units. Teacher and hybrid are
// both this; they differ in config.mixers. No weights, no ranks, no files, no optimizer: weights
// are leased (model/weights/lender.h) by whoever runs units.
//
// Parts in order: embedding, (block, mixer) per layer, head (final norm; lm_head unless it is
// tied).
#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <optional>
#include <vector>

#include "model/unit.h"

namespace sala {

class Model {
 public:
  explicit Model(ModelConfig config);
  Model(const Model&) = delete;  // units refer to config_
  Model& operator=(const Model&) = delete;

  const ModelConfig& config() const { return config_; }
  const std::vector<LayoutPtr>& layouts() const { return layouts_; }
  // Embedding, block 0 … L-1. The final norm stands beside them: it runs with the loss or the
  // logits, whose weights it shares a lease with.
  const std::vector<std::unique_ptr<Unit>>& units() const { return units_; }
  const Unit& final_norm() const { return *final_norm_; }

  // The one place that knows how parts are numbered: the embedding, then these of each layer.
  static constexpr size_t kBlock = 1, kMixer = 2, kPartsOfLayer = 2;
  static size_t embedding_part() { return 0; }
  static size_t block_part(int64_t layer) {
    return kBlock + kPartsOfLayer * static_cast<size_t>(layer);
  }
  static size_t mixer_part(int64_t layer) {
    return kMixer + kPartsOfLayer * static_cast<size_t>(layer);
  }
  size_t head_part() const { return layouts_.size() - 1; }
  static std::optional<int64_t> layer_of_mixer(size_t part, int64_t num_layers) {
    if (part < kMixer || (part - kMixer) % kPartsOfLayer != 0) return std::nullopt;
    const auto layer = static_cast<int64_t>((part - kMixer) / kPartsOfLayer);
    return layer < num_layers ? std::optional(layer) : std::nullopt;
  }

  // What the final norm and the vocabulary projection need: {head part}, or {head part, embedding
  // part} where tied. final_norm() takes the same lease: its weight is in the first.
  std::vector<size_t> head_parts() const;
  // The vocabulary projection (V, C) in a lease of head_parts(); the part it lies in and its name
  // there, for its gradient.
  const at::Tensor& head_weight(const Lease& head) const;
  size_t head_weight_part() const { return head_parts().back(); }
  const char* head_weight_name() const {
    return config_.tied_head ? "embed_tokens.weight" : "lm_head.weight";
  }

  // `sparse`: documents of dense_len and more use block-sparse attention on sparse layers.
  // `cached`: keeps the tokens of the batch; no step (model/generation/decoder.h makes those).
  Env env(const Batch& batch, bool sparse, const CachePass* cached = nullptr) const;
  // Which of the rotary tables any layer reads.
  struct Ropes {
    bool full = false, lightning = false;
  };
  Ropes ropes() const;

 private:
  ModelConfig config_;
  std::vector<LayoutPtr> layouts_;
  std::vector<std::unique_ptr<Unit>> units_;
  std::unique_ptr<Unit> final_norm_;
};

// A batch of one document, for evaluation and generation; targets and weights are undefined.
Batch single_document(const std::vector<int64_t>& ids, int64_t first_position, at::Device device);

}  // namespace sala
