// A model as layouts and units.
#include "model/model.h"

#include <algorithm>

#include "model/block.h"
#include "model/ends.h"
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

Env Model::env(const Batch& batch, bool sparse, DecodeState* decode) const {
  Env env;
  env.batch = &batch;
  env.sparse = sparse;
  env.decode = decode;
  env.key_docs = batch.shard ? batch.shard->key_documents() : batch.docs;
  if (decode) {
    TORCH_CHECK(!batch.shard, "decoding takes a sequence that is whole on this rank");
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
    const int64_t longest =
        std::max({env.key_docs.longest, batch.longest_document(), env.planned_tokens});
    auto of_length = [&](int64_t length) {
      return rope_table(rope, config_.head_size, config_.max_position, batch.position, length);
    };
    RopeTable chosen = of_length(longest);
    const int64_t original = rope.original_max_position;
    if (rope.kind != RopeConfig::Kind::kLongrope || longest <= original || decode) return chosen;
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
  if (full) env.full_rope = table(config_.rope);
  if (lightning) env.lightning_rope = table(config_.lightning_rope_config);
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
