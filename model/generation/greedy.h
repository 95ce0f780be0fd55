// Greedy decoding of as many prompts as a cache has sequences. Ids stay on the device, and the host
// waits for nothing.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "kernels/gpu/work_graph.h"
#include "model/generation/decoder.h"

namespace sala {

struct GreedyOptions {
  int64_t max_new_tokens = 16;
  int64_t prefill_chunk = 16384;
  // On CUDA: a step is captured and replayed. For lenders whose leases wait for nothing.
  bool graph = false;
};

class Greedy {
 public:
  // `cache` of this model, empty, with room for the prompts and max_new_tokens - 1 tokens more.
  Greedy(const Model& model, Lender& weights, DecodeCache& cache, const GreedyOptions& options);

  // The first new id of each prompt,
  void prefill(const std::vector<std::vector<int64_t>>& prompts);
  // or, where somebody else filled the cache, ids (S) int64 in its place;
  void begin(const at::Tensor& ids);
  // and the next of each: at most max_new_tokens in all. Ties go to the lower id.
  void step();
  int64_t count() const { return count_; }
  // (S, count) int64 on the device.
  at::Tensor ids() const { return ids_.narrow(1, 0, count_); }

 private:
  at::Tensor best(const at::Tensor& hidden);
  void keep(const at::Tensor& ids);
  void queue_step();

  const Model& model_;
  Lender& weights_;
  DecodeCache& cache_;
  GreedyOptions options_;
  Decoder decoder_;
  at::Tensor ids_;    // (S, max_new_tokens)
  at::Tensor next_;   // (S) of the last step
  at::Tensor place_;  // (1) of the next ids
  int64_t count_ = 0;
  WorkGraph graph_;
};

}  // namespace sala
