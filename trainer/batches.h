// Rows of the loader as micro-batches on the device.
#pragma once

#include <span>
#include <vector>

#include "data/packing.h"
#include "model/batch.h"

namespace sala {

// What the micro-batches of one step have in common.
struct StepFacts {
  double global_weight = 1;  // the step's sum of loss weights over all ranks
  int64_t num_sources = 0;   // losses are told by source; 0: they are not
};

// All rows laid end to end.
Batch make_batch(std::span<const Row> rows, const StepFacts& facts, at::Device device);

// A rank that has no more rows in a step joins the others' collectives with this: a few tokens of
// weight 0.
Batch idle_batch(const StepFacts& facts, at::Device device);

// At most `micro_rows` rows each; `count` of them, the last ones idle where rows are too few.
// Micro-batches are shared by the ranks of `sequence`, where it is given: each gets its shard.
std::vector<Batch> make_micro_batches(const std::vector<Row>& rows, int64_t micro_rows,
                                      int64_t count, const StepFacts& facts, at::Device device,
                                      Comm* sequence);

}  // namespace sala
