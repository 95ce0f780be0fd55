// Greedy continuation of prompts with kept state (model/generation/cache.h).
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
  // Sequences that are decoded side by side: at most so many, and no more than these bytes hold
  // (but one). Longer prompts take more of them.
  int64_t max_sequences = 64;
  int64_t cache_bytes = int64_t{4} << 30;
  bool graph = false;  // on CUDA, capture the step once: for lenders whose leases wait for nothing
};

// The new ids of each prompt, in the order of the prompts. Prompts may have any lengths; those of
// similar length are decoded together, whatever their order. Ties go to the lower id. Leases every
// unit once per call of the model: a sharded lender may be told to hold all parts for its duration.
std::vector<std::vector<int64_t>> generate_batch(const Model& model, Lender& weights,
                                                 const std::vector<std::vector<int64_t>>& prompts,
                                                 const GenerateOptions& options);

// Of one prompt.
std::vector<int64_t> generate(const Model& model, Lender& weights,
                              const std::vector<int64_t>& prompt, const GenerateOptions& options);

}  // namespace sala
