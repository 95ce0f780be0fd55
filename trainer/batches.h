// Rows of the loader as micro-batches on the device.
#pragma once

#include <span>
#include <vector>

#include "data/packing.h"
#include "model/batch.h"

namespace sala {

// All rows laid end to end. `global_weight`: the step's sum of loss weights over all ranks.
Batch make_batch(std::span<const Row> rows, double global_weight, at::Device device);

// At most `micro_rows` rows each.
std::vector<Batch> make_micro_batches(const std::vector<Row>& rows, int64_t micro_rows,
                                      double global_weight, at::Device device);

}  // namespace sala
