// What generation keeps of S sequences: keys and values of softmax layers, states of lightning
// layers, in memory that is taken once; and how a pass uses it.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "kernels/decode.h"
#include "model/config.h"

namespace sala {

struct LayerCache {
  KeyCache keys;     // softmax layers
  at::Tensor state;  // (S, NH, HS, HS) fp32 (fp64 for fp64); lightning layers
};

struct DecodeCacheShape {
  int64_t num_sequences = 0;
  int64_t capacity = 0;  // tokens of each sequence, prompt and answer
  bool sparse = true;    // as for Model::env
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
};

struct DecodeCache {
  DecodeCache(const ModelConfig& config, const DecodeCacheShape& shape);
  // What the constructor takes.
  static int64_t num_bytes(const ModelConfig& config, const DecodeCacheShape& shape);

  int64_t num_sequences() const { return shape.num_sequences; }
  // Whether a step waits for nothing on the host (kernels/decode.h), so that one may be captured.
  bool steps_on_device(const ModelConfig& config) const;

  DecodeCacheShape shape;
  std::vector<LayerCache> layers;
  DecodeLengths lengths;  // tokens that are kept; during a step those that it adds as well
};

// A pass over tokens that a cache keeps. Either it feeds documents, whole ones or one in chunks, to
// sequences first_sequence and on; or it is a step: one token of each sequence, which lengths
// counts already.
struct CachePass {
  DecodeCache& cache;
  bool is_step = false;
  int64_t first_sequence = 0;
  int64_t num_before = 0;      // tokens of the one document that were fed before
  int64_t planned_tokens = 0;  // of the whole document: chunks of it decide as one call would

  // Of softmax and lightning layers alike: document d of the batch is sequence
  int64_t sequence(int64_t d) const { return first_sequence + d; }
};

}  // namespace sala
