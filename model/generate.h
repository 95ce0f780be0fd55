// Greedy continuation with kept state: keys and values of softmax layers, one state per lightning
// layer.
#pragma once

#include <cstdint>
#include <vector>

#include "model/model.h"
#include "model/weights/lender.h"

namespace sala {

struct GenerateOptions {
  int64_t max_new_tokens = 16;
  bool sparse = true;             // long prompts select blocks, as the loaders do
  int64_t prefill_chunk = 16384;  // tokens per prefill call
  at::Device device = at::kCPU;   // where the weights are
  std::vector<int64_t> stop_ids;  // generation ends after one of these
};

// Ties go to the lower id. Returns the new ids only. Leases every unit once per call of the model:
// a sharded lender may be told to hold all parts for its duration.
std::vector<int64_t> generate(const Model& model, Lender& weights,
                              const std::vector<int64_t>& prompt, const GenerateOptions& options);

}  // namespace sala
