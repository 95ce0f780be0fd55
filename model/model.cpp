// A model as parts and units.
#include "model/model.h"

#include <algorithm>

#include "model/block.h"
#include "model/parts.h"

namespace sala {

Model::Model(ModelConfig config, at::ScalarType dtype, at::Device device)
    : config_(std::move(config)) {
  for (Layout& layout : model_layouts(config_)) parts_.emplace_back(layout, dtype, device);
  units_.push_back(std::make_unique<EmbeddingUnit>(config_));
  units_.back()->parts = {0};
  for (int64_t l = 0; l < config_.num_layers; ++l) {
    units_.push_back(std::make_unique<BlockUnit>(config_, l));
    units_.back()->parts = {static_cast<size_t>(1 + 2 * l), static_cast<size_t>(2 + 2 * l)};
  }
  units_.push_back(std::make_unique<FinalNormUnit>(config_));
  units_.back()->parts = {parts_.size() - 1};
}

std::vector<Weights*> Model::part_pointers() {
  std::vector<Weights*> pointers;
  for (Weights& part : parts_) pointers.push_back(&part);
  return pointers;
}

size_t Model::head_part() const { return config_.tied_head ? 0 : parts_.size() - 1; }
size_t Model::head_entry() const { return config_.tied_head ? 0 : 1; }
const at::Tensor& Model::head_weight() const { return parts_[head_part()].views()[head_entry()]; }

Env Model::env(const Batch& batch, bool sparse, DecodeState* decode) const {
  Env env;
  env.batch = &batch;
  env.sparse = sparse;
  env.decode = decode;
  env.key_docs = batch.docs;
  if (decode) {
    TORCH_CHECK(batch.docs.count() == 1, "decoding takes one sequence, got ", batch.docs.count());
    decode->layers.resize(config_.num_layers);
    env.key_docs = Documents::single(decode->num_tokens + batch.num_tokens(), batch.ids.device());
    env.planned_tokens = decode->planned_tokens;
  }
  bool full = false, lightning = false;
  for (Mixer m : config_.mixers) {
    full |= m == Mixer::kFull || (m == Mixer::kSparse && config_.sparse_rope);
    lightning |= m == Mixer::kLightning && config_.lightning_rope;
  }
  auto table = [&](const RopeConfig& rope) {
    const int64_t longest = std::max(env.key_docs.longest, env.planned_tokens);
    auto of_length = [&](int64_t length) {
      return rope_table(rope, config_.head_size, config_.max_position, batch.position, length);
    };
    RopeTable chosen = of_length(longest);
    const int64_t original = rope.original_max_position;
    if (rope.kind != RopeConfig::Kind::kLongrope || longest <= original || decode) return chosen;
    // longrope: each document takes the factors of its own length, whatever it is packed with.
    const RopeTable of_short = of_length(original);
    for (int64_t d = 0; d < batch.docs.count(); ++d) {
      if (batch.docs.length(d) > original) continue;
      auto rows = [&](const at::Tensor& t) {
        return t.narrow(0, batch.docs.offsets[d], batch.docs.length(d));
      };
      rows(chosen.cos).copy_(rows(of_short.cos));
      rows(chosen.sin).copy_(rows(of_short.sin));
    }
    return chosen;
  };
  if (full) env.full_rope = table(config_.rope);
  if (lightning) env.lightning_rope = table(config_.lightning_rope_config);
  return env;
}

std::vector<const Weights*> Model::unit_weights(size_t unit) const {
  std::vector<const Weights*> weights;
  for (size_t part : units_[unit]->parts) weights.push_back(&parts_[part]);
  return weights;
}

at::Tensor Model::run_units(size_t first, size_t last, at::Tensor x, const Env& env) const {
  at::NoGradGuard no_grad;
  for (size_t u = first; u < last; ++u) x = units_[u]->forward(unit_weights(u), x, env, nullptr);
  return x;
}

at::Tensor Model::hidden(const Env& env) const {
  at::Tensor x = run_units(0, units_.size(), {}, env);
  if (env.decode) env.decode->num_tokens += env.batch->num_tokens();
  return x;
}

at::Tensor Model::logits(const at::Tensor& hidden) const {
  at::NoGradGuard no_grad;
  at::Tensor scaled = config_.logit_scale == 1.0 ? hidden : hidden * config_.logit_scale;
  return at::linear(scaled, head_weight()).to(at::promote_types(at::kFloat, hidden.scalar_type()));
}

at::Tensor Model::block_with_mixer(int64_t layer, Mixer mixer, const Weights& mixer_weights,
                                   const at::Tensor& x, const Env& env) const {
  return block_forward(config_, layer, mixer, parts_[1 + 2 * layer], mixer_weights, x, env,
                       nullptr);
}

Batch single_document(const std::vector<int64_t>& ids, int64_t first_position, at::Device device) {
  const int64_t T = static_cast<int64_t>(ids.size());
  Batch batch;
  batch.ids = at::tensor(ids, at::kLong).to(device);
  batch.position = at::arange(first_position, first_position + T,
                              at::TensorOptions().dtype(at::kLong).device(device));
  batch.docs = Documents::single(T, device);
  return batch;
}

}  // namespace sala
