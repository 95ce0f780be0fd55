// Packing the loader's rows into device tensors.
#include "trainer/batches.h"

#include <algorithm>
#include <numeric>

#include "kernels/to_device.h"

namespace sala {

Batch make_batch(std::span<const Row> rows, const StepFacts& facts, at::Device device) {
  int64_t T = 0;
  for (const Row& row : rows) T += static_cast<int64_t>(row.ids.size());
  at::Tensor ids = at::empty({T}, at::kLong), targets = at::empty({T}, at::kLong);
  at::Tensor position = at::empty({T}, at::kLong), weight = at::empty({T}, at::kFloat);
  at::Tensor source = at::empty({T}, at::kLong);
  std::vector<int64_t> starts;
  int64_t t = 0;
  for (const Row& row : rows) {
    const auto length = static_cast<int64_t>(row.ids.size());
    for (size_t d = 0; d < row.doc_starts.size(); ++d) {
      const int64_t end = d + 1 < row.doc_starts.size() ? row.doc_starts[d + 1] : length;
      starts.push_back(t + row.doc_starts[d]);
      std::fill_n(source.data_ptr<int64_t>() + t + row.doc_starts[d], end - row.doc_starts[d],
                  row.source_of_doc[d]);
    }
    std::copy(row.ids.begin(), row.ids.end(), ids.data_ptr<int64_t>() + t);
    std::copy(row.targets.begin(), row.targets.end(), targets.data_ptr<int64_t>() + t);
    std::copy(row.position.begin(), row.position.end(), position.data_ptr<int64_t>() + t);
    std::copy(row.loss_weight.begin(), row.loss_weight.end(), weight.data_ptr<float>() + t);
    t += length;
  }
  Batch batch;
  batch.ids = queue_to(ids, device);
  batch.targets = queue_to(targets, device);
  batch.position = queue_to(position, device);
  batch.loss_weight = queue_to(weight, device);
  batch.docs = Documents::from_starts(starts, T, device);
  if (facts.num_sources > 0) batch.source = queue_to(source, device);
  batch.num_sources = facts.num_sources;
  batch.global_weight = facts.global_weight;
  return batch;
}

Batch idle_batch(const StepFacts& facts, at::Device device) {
  constexpr int64_t kIdleTokens = 256;  // every rank of a split sequence gets some of them
  Row row;
  row.ids.assign(kIdleTokens, 0);
  row.targets.assign(kIdleTokens, 0);
  row.loss_weight.assign(kIdleTokens, 0.0F);
  row.position.resize(kIdleTokens);
  std::iota(row.position.begin(), row.position.end(), 0);
  row.doc_starts = {0};
  row.source_of_doc = {0};
  Batch batch = make_batch({&row, 1}, facts, device);
  batch.idle = true;
  return batch;
}

std::vector<Batch> make_micro_batches(const std::vector<Row>& rows, int64_t micro_rows,
                                      int64_t count, const StepFacts& facts, at::Device device,
                                      Comm* sequence) {
  std::vector<Batch> batches;
  const std::span<const Row> all(rows);
  for (size_t begin = 0; begin < rows.size(); begin += micro_rows) {
    const size_t num = std::min(rows.size() - begin, static_cast<size_t>(micro_rows));
    batches.push_back(make_batch(all.subspan(begin, num), facts, device));
  }
  while (static_cast<int64_t>(batches.size()) < count) {
    batches.push_back(idle_batch(facts, device));
  }
  // Every rank of a group has read whole rows, of which it keeps a part: 128K tokens take a host
  // 0.2 ms (from the page cache, one core), too little to hand them out instead.
  if (sequence) {
    for (Batch& batch : batches) batch = make_shard(batch, *sequence);
  }
  return batches;
}

}  // namespace sala
