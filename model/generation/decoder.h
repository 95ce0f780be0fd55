// Feeds prompts into a cache and steps all of its sequences on, a token each.
#pragma once

#include <ATen/ATen.h>

#include <span>
#include <vector>

#include "model/generation/cache.h"
#include "model/model.h"
#include "model/weights/lender.h"

namespace sala {

class Decoder {
 public:
  // `cache` of this model, empty. `chunk`: tokens that one pass of a prefill takes at most.
  Decoder(const Model& model, Lender& weights, DecodeCache& cache, int64_t chunk);

  // The final norm's output at the last token of each prompt, (S, C): one prompt, not empty, per
  // sequence of the cache. Neighbours that fit in a chunk together are fed together, a longer one
  // in chunks.
  at::Tensor prefill(const std::vector<std::vector<int64_t>>& prompts);
  // One token of each sequence: ids (S) int64 on the device -> (S, C). On CUDA the host waits for
  // nothing, and a captured step may be replayed, then with cache.lengths.add_one_on_host().
  at::Tensor step(const at::Tensor& ids);

 private:
  at::Tensor feed(const Batch& batch, const CachePass& pass);

  const Model& model_;
  Lender& weights_;
  DecodeCache& cache_;
  int64_t chunk_;
  StepRope full_rope_, lightning_rope_;
  Documents one_each_;  // S documents of one token
};

}  // namespace sala
