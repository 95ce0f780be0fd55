// The units of a decoder: embedding, block (mixer and MLP on one residual stream), final norm.
#pragma once

#include "model/unit.h"

namespace sala {

class EmbeddingUnit : public Unit {
 public:
  explicit EmbeddingUnit(const ModelConfig& config) : config_(config) {}
  at::Tensor forward(std::span<const Weights* const> weights, const at::Tensor& x, const Env& env,
                     Saved* saved) const override;

 private:
  const ModelConfig& config_;
};

// h = x + r * mixer(norm(x)); y = h + r * mlp(norm(h)).
at::Tensor block_forward(const ModelConfig& config, int64_t layer, Mixer mixer,
                         const Weights& block, const Weights& mixer_weights, const at::Tensor& x,
                         const Env& env, Saved* saved);

class BlockUnit : public Unit {
 public:
  BlockUnit(const ModelConfig& config, int64_t layer) : config_(config), layer_(layer) {}
  at::Tensor forward(std::span<const Weights* const> weights, const at::Tensor& x, const Env& env,
                     Saved* saved) const override;

 private:
  const ModelConfig& config_;
  int64_t layer_;
};

class FinalNormUnit : public Unit {
 public:
  explicit FinalNormUnit(const ModelConfig& config) : config_(config) {}
  at::Tensor forward(std::span<const Weights* const> weights, const at::Tensor& x, const Env& env,
                     Saved* saved) const override;

 private:
  const ModelConfig& config_;
};

}  // namespace sala
