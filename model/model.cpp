// A model as layouts and units.
#include "model/model.h"

#include <algorithm>

#include "model/block.h"
#include "model/ends.h"
#include "model/generation/cache.h"
#include "model/weights/parts.h"

namespace sala {

Model::Model(ModelConfig config)
    : config_(std::move(config)), final_norm_(std::make_unique<FinalNormUnit>(config_)) {
  for (Layout& layout : model_layouts(config_)) {
    layouts_.push_back(std::make_shared<const Layout>(std::move(layout)));
  }
  units_.push_back(std::make_unique<EmbeddingUnit>(config_));
  units_.back()->parts = {embedding_part()};
  for (int64_t l = 0; l < config_.num_layers; ++l) {
    units_.push_back(std::make_unique<BlockUnit>(config_, l));
    units_.back()->parts = {block_part(l), mixer_part(l)};
  }
  final_norm_->parts = {head_part()};
}

std::vector<size_t> Model::head_parts() const {
  if (config_.tied_head) return {head_part(), embedding_part()};
  return {head_part()};
}

const at::Tensor& Model::head_weight(const Lease& head) const {
  return head[head.size() - 1][head_weight_name()];
}

Model::Ropes Model::ropes() const {
  Ropes used;
  for (Mixer m : config_.mixers) {
    used.full |= m == Mixer::kFull || (m == Mixer::kSparse && config_.sparse_rope);
    used.lightning |= m == Mixer::kLightning && config_.lightning_rope;
  }
  return used;
}

Env Model::env(const Batch& batch, bool sparse, const CachePass* cached) const {
  Env env;
  env.batch = &batch;
  env.sparse = sparse;
  env.cached = cached;
  env.key_docs = batch.shard ? batch.shard->key_documents() : batch.docs;
  if (cached) {
    TORCH_CHECK(!batch.shard, "decoding takes sequences that are whole on this rank");
    TORCH_CHECK(cached->num_before == 0 || batch.docs.count() == 1,
                "a chunk that goes on takes one sequence, got ", batch.docs.count());
    if (cached->num_before > 0) {
      env.key_docs = Documents::single(cached->num_before + batch.num_tokens(), batch.ids.device());
    }
    env.planned_tokens = cached->planned_tokens;
  }
  auto table = [&](const RopeConfig& rope) {
    const int64_t longest =
        std::max({env.key_docs.longest, batch.longest_document(), env.planned_tokens});
    auto of_length = [&](int64_t length) {
      return rope_table(rope, config_.head_size, config_.max_position, batch.position, length);
    };
    RopeTable chosen = of_length(longest);
    const int64_t original = rope.original_max_position;
    if (rope.kind != RopeConfig::Kind::kLongrope || longest <= original || env.planned_tokens > 0) {
      return chosen;
    }
    // longrope: each document takes the factors of its own length, whatever it is packed with.
    const RopeTable of_short = of_length(original);
    for (int64_t d = 0; d < batch.docs.count(); ++d) {
      if (batch.document_length(d) > original) continue;
      auto rows = [&](const at::Tensor& t) {
        return t.narrow(0, batch.docs.offsets[d], batch.docs.length(d));
      };
      rows(chosen.cos).copy_(rows(of_short.cos));
      rows(chosen.sin).copy_(rows(of_short.sin));
    }
    return chosen;
  };
  const Ropes used = ropes();
  if (used.full) env.full_rope = table(config_.rope);
  if (used.lightning) env.lightning_rope = table(config_.lightning_rope_config);
  return env;
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
