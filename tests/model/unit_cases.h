// Small models with every switch that a family can set, in one block each, and batches for them.
#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <string>
#include <vector>

#include "model/model.h"

namespace sala {

inline ModelConfig small_config(Mixer mixer) {
  ModelConfig c;
  c.family = "minicpm_sala";
  c.num_layers = 1;
  c.width = 24;
  c.ffn_width = 40;
  c.vocab_size = 19;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.lightning_kv_heads = 4;
  c.head_size = 8;
  c.max_position = 512;
  c.rms_eps = 1e-5;
  c.residual_scale = 0.6;
  c.embedding_scale = 3.0;
  c.logit_scale = 0.5;
  c.sparse = {8, 4, 1, 16, 32, 2, 64};  // documents of 64 tokens and more select 4 blocks of 16
  c.mixers = {mixer};
  return c;
}

struct UnitCase {
  std::string name;
  ModelConfig config;
};

inline std::vector<UnitCase> unit_cases() {
  std::vector<UnitCase> cases;
  auto add = [&](const char* name, Mixer mixer, auto&& change) {
    cases.push_back({name, small_config(mixer)});
    change(cases.back().config);
  };
  using Config = ModelConfig;
  const Mixer full = Mixer::kFull, sparse = Mixer::kSparse, linear = Mixer::kLightning;
  add("llama", full, [](Config& c) { c.residual_scale = 1; });
  add("minicpm", full, [](Config&) {});
  add("llama with biases", full, [](Config& c) { c.qkv_bias = c.out_bias = true; });
  add("qwen2", full, [](Config& c) { c.qkv_bias = true; });
  add("qwen3", full, [](Config& c) { c.full_qk_norm = true; });
  add("one head group", full, [](Config& c) { c.num_kv_heads = 4; });
  add("sparse", sparse, [](Config&) {});
  add("sparse with biases", sparse, [](Config& c) { c.qkv_bias = c.out_bias = true; });
  add("sparse, biases of q, k, v alone", sparse, [](Config& c) { c.qkv_bias = true; });
  add("sparse, biases of gate and output alone", sparse, [](Config& c) { c.out_bias = true; });
  add("sparse without gate", sparse, [](Config& c) { c.sparse_output_gate = false; });
  add("sparse with QK-norm", sparse, [](Config& c) { c.sparse_qk_norm = true; });
  add("sparse with rotation", sparse, [](Config& c) { c.sparse_rope = true; });
  add("lightning", linear, [](Config&) {});
  add("lightning with biases", linear, [](Config& c) { c.qkv_bias = c.out_bias = true; });
  add("lightning with few KV heads", linear, [](Config& c) { c.lightning_kv_heads = 2; });
  add("lightning without QK-norm", linear, [](Config& c) { c.lightning_qk_norm = false; });
  add("lightning without rotation", linear, [](Config& c) {
    c.lightning_rope = c.lightning_qk_norm = false;
    c.lightning_scale = 0.2;
  });
  add("lightning without output norm", linear, [](Config& c) { c.lightning_output_norm = false; });
  add("lightning without gate", linear, [](Config& c) { c.lightning_output_gate = false; });
  add("lightning, bare", linear,
      [](Config& c) { c.lightning_output_gate = c.lightning_output_norm = false; });
  return cases;
}

// Documents of these lengths, one after another.
inline Batch batch_of(const std::vector<int64_t>& lengths, int64_t vocab_size) {
  Batch batch;
  std::vector<int64_t> starts;
  std::vector<at::Tensor> positions;
  int64_t T = 0;
  for (int64_t length : lengths) {
    starts.push_back(T);
    positions.push_back(at::arange(length, at::kLong));
    T += length;
  }
  batch.ids = at::randint(0, vocab_size, {T}, at::kLong);
  batch.position = at::cat(positions);
  batch.docs = Documents::from_starts(starts, T, at::kCPU);
  return batch;
}

inline Batch short_documents() { return batch_of({5, 1, 18, 13}, 19); }
inline Batch long_documents() { return batch_of({70, 65, 101}, 19); }
inline Batch mixed_documents() { return batch_of({7, 75, 1, 64, 30, 90}, 19); }

// Every tensor random, norms around one.
inline void fill_random(HeldWeights& weights) {
  for (Weights& part : weights.parts()) {
    for (size_t i = 0; i < part.views().size(); ++i) {
      const bool one = part.layout().entries[i].init == Init::kOnes;
      part.views()[i].copy_(at::randn(part.views()[i].sizes()) * 0.3 + (one ? 1.0 : 0.0));
    }
  }
}

// A model with weights, and gradients for all of its parts that begin at `start`.
struct HeldModel {
  explicit HeldModel(const ModelConfig& config, at::ScalarType dtype = at::kDouble)
      : model(config), weights(model.layouts(), dtype, at::kCPU), weights_dtype(dtype) {
    fill_random(weights);
  }

  // Rotary tables in the type of the weights; the model's own are fp32.
  Env env(const Batch& batch, bool sparse) const {
    Env made = model.env(batch, sparse);
    for (RopeTable* table : {&made.full_rope, &made.lightning_rope}) {
      if (!table->cos.defined()) continue;
      table->cos = table->cos.to(weights_dtype);
      table->sin = table->sin.to(weights_dtype);
    }
    return made;
  }

  // One gradient for each part of the unit; entries that `trains` names, all by default.
  static std::vector<Gradient> gradients(const std::vector<LayoutPtr>& layouts,
                                         const std::vector<size_t>& parts, at::ScalarType dtype,
                                         double start = 0) {
    std::vector<Gradient> list;
    for (size_t part : parts) {
      const LayoutPtr& layout = layouts[part];
      list.emplace_back(layout, at::full({layout->num_elements}, start, dtype),
                        std::vector<bool>(layout->entries.size(), true));
    }
    return list;
  }

  Model model;
  HeldWeights weights;
  at::ScalarType weights_dtype;
};

inline std::vector<Gradient*> pointers(std::vector<Gradient>& gradients) {
  std::vector<Gradient*> list;
  for (Gradient& gradient : gradients) list.push_back(&gradient);
  return list;
}

}  // namespace sala
