// A small hybrid, weights and a batch for it, for tests on a GPU.
#pragma once

#include "model/model.h"

namespace sala {

inline ModelConfig small_hybrid() {
  ModelConfig c;
  c.family = "minicpm_sala";
  c.num_layers = 4;
  c.width = 256;
  c.ffn_width = 512;
  c.vocab_size = 1000;
  c.num_heads = 6;
  c.num_kv_heads = 2;
  c.lightning_kv_heads = 6;
  c.head_size = 64;
  c.max_position = 8192;
  c.tied_head = true;
  c.sparse = {32, 16, 1, 64, 128, 2, 400};
  c.mixers = {Mixer::kSparse, Mixer::kLightning, Mixer::kLightning, Mixer::kSparse};
  return c;
}

// Matrices of a trained model's size, norms about one.
inline void set_random(const Weights& part, at::Generator& generator) {
  for (size_t i = 0; i < part.views().size(); ++i) {
    const at::Tensor& view = part.views()[i];
    const bool one = part.layout().entries[i].init == Init::kOnes;
    view.copy_(at::randn(view.sizes(), generator, at::kFloat) * 0.06 + (one ? 1.0 : 0.0));
  }
}

// Three documents: short, long enough to go sparse, one token.
inline Batch batch_on(at::Device device) {
  const int64_t T = 700;
  at::Generator generator = at::detail::createCPUGenerator(3);
  Batch batch;
  batch.ids = at::randint(0, 1000, {T}, generator, at::kLong).to(device);
  batch.targets = at::randint(0, 1000, {T}, generator, at::kLong).to(device);
  batch.loss_weight = at::ones({T}).to(device);
  batch.docs = Documents::from_starts({0, 130, 699}, T, device);
  at::Tensor position = at::empty({T}, at::kLong);
  for (int64_t d = 0; d < batch.docs.count(); ++d) {
    position.narrow(0, batch.docs.offsets[d], batch.docs.length(d))
        .copy_(at::arange(batch.docs.length(d)));
  }
  batch.position = position.to(device);
  batch.global_weight = static_cast<double>(T);
  return batch;
}

}  // namespace sala
