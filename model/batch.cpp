// A line of tokens cut into shards, and the lengths of documents that go on on other ranks.
#include "model/batch.h"

namespace sala {

int64_t Batch::document_length(int64_t d) const {
  return shard ? shard->whole_length(d) : docs.length(d);
}

int64_t Batch::longest_document() const { return shard ? shard->whole.longest : docs.longest; }

Batch make_shard(const Batch& line, Comm& comm) {
  TORCH_CHECK(!line.shard, "make_shard: expected a line that is whole, got a shard of one");
  auto shard = std::make_shared<SequenceShard>();
  shard->comm = &comm;
  shard->borders = shard_borders(line.num_tokens(), comm.size());
  shard->whole = line.docs;
  const auto cut = [&](const at::Tensor& x) {
    return x.defined() ? x.slice(0, shard->begin(), shard->end()) : x;
  };
  Batch batch;
  batch.ids = cut(line.ids);
  batch.targets = cut(line.targets);
  batch.loss_weight = cut(line.loss_weight);
  batch.position = cut(line.position);
  batch.source = cut(line.source);
  batch.num_sources = line.num_sources;
  batch.idle = line.idle;
  batch.docs = shard->local_documents();
  batch.global_weight = line.global_weight;
  batch.shard = std::move(shard);
  return batch;
}

}  // namespace sala
