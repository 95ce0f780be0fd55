// The two ends of a model: embedding and final norm.
#pragma once

#include "model/unit.h"

namespace sala {

// x_t = embedding_scale * row ids_t.
class EmbeddingUnit : public Unit {
 public:
  explicit EmbeddingUnit(const ModelConfig& config) : config_(config) {}
  at::Tensor forward(const Lease& weights, const at::Tensor& x, const Env& env,
                     Saved* saved) const override;
  at::Tensor backward(const Lease& weights, const at::Tensor& dy, const Env& env, Saved& saved,
                      std::span<Gradient* const> gradients) const override;

 private:
  const ModelConfig& config_;
};

class FinalNormUnit : public Unit {
 public:
  explicit FinalNormUnit(const ModelConfig& config) : config_(config) {}
  at::Tensor forward(const Lease& weights, const at::Tensor& x, const Env& env,
                     Saved* saved) const override;
  at::Tensor backward(const Lease& weights, const at::Tensor& dy, const Env& env, Saved& saved,
                      std::span<Gradient* const> gradients) const override;

 private:
  const ModelConfig& config_;
};

}  // namespace sala
