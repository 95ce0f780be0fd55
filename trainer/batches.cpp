// Packing the loader's rows into device tensors.
#include "trainer/batches.h"

#include <algorithm>

#include "kernels/to_device.h"

namespace sala {

Batch make_batch(std::span<const Row> rows, double global_weight, at::Device device) {
  int64_t T = 0;
  for (const Row& row : rows) T += static_cast<int64_t>(row.ids.size());
  at::Tensor ids = at::empty({T}, at::kLong), targets = at::empty({T}, at::kLong);
  at::Tensor position = at::empty({T}, at::kLong), weight = at::empty({T}, at::kFloat);
  std::vector<int64_t> starts;
  int64_t t = 0;
  for (const Row& row : rows) {
    for (int64_t start : row.doc_starts) starts.push_back(t + start);
    std::copy(row.ids.begin(), row.ids.end(), ids.data_ptr<int64_t>() + t);
    std::copy(row.targets.begin(), row.targets.end(), targets.data_ptr<int64_t>() + t);
    std::copy(row.position.begin(), row.position.end(), position.data_ptr<int64_t>() + t);
    std::copy(row.loss_weight.begin(), row.loss_weight.end(), weight.data_ptr<float>() + t);
    t += static_cast<int64_t>(row.ids.size());
  }
  Batch batch;
  batch.ids = queue_to(ids, device);
  batch.targets = queue_to(targets, device);
  batch.position = queue_to(position, device);
  batch.loss_weight = queue_to(weight, device);
  batch.docs = Documents::from_starts(starts, T, device);
  batch.global_weight = global_weight;
  return batch;
}

std::vector<Batch> make_micro_batches(const std::vector<Row>& rows, int64_t micro_rows,
                                      double global_weight, at::Device device) {
  std::vector<Batch> batches;
  const std::span<const Row> all(rows);
  for (size_t begin = 0; begin < rows.size(); begin += micro_rows) {
    const size_t count = std::min(rows.size() - begin, static_cast<size_t>(micro_rows));
    batches.push_back(make_batch(all.subspan(begin, count), global_weight, device));
  }
  return batches;
}

}  // namespace sala
