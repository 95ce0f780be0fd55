// Host side of the block-sparse kernels' launches: descriptions of their inputs, and thread blocks
// that fill the device.
#pragma once

#include <algorithm>

#include "kernels/attention/block_sparse_pipes.cuh"
#include "kernels/lightning/inputs.h"

namespace sala {

template <int kTensors>
int make_inputs(MappedQueries<kTensors>* inputs, const void* const (&rows)[kTensors], const void* k,
                const void* v, int64_t HS, const BlockSparseShape& shape) {
  const int NKV = shape.num_kv_heads, G = shape.group;
  for (int n = 0; n < kTensors; ++n) {
    if (const int error = make_tile_map(&inputs->rows[n], rows[n], shape.num_queries, NKV * G, HS,
                                        shape.tile_tokens, G)) {
      return error;
    }
  }
  if (const int error = make_tile_map(&inputs->keys[0], k, shape.num_keys, NKV, HS)) return error;
  return make_tile_map(&inputs->keys[1], v, shape.num_keys, NKV, HS);
}

template <int kTensors>
int make_inputs(PlainQueries<kTensors>* inputs, const void* const (&rows)[kTensors], const void* k,
                const void* v, int64_t, const BlockSparseShape&) {
  for (int n = 0; n < kTensors; ++n) inputs->rows[n] = static_cast<const __nv_bfloat16*>(rows[n]);
  inputs->keys[0] = static_cast<const __nv_bfloat16*>(k);
  inputs->keys[1] = static_cast<const __nv_bfloat16*>(v);
  return cudaSuccess;
}

// One thread block per multiprocessor, which walks over tiles.
inline int blocks_for_tiles(const BlockSparseShape& shape) {
  int device = 0, num_sms = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device);
  const int64_t num_tiles = num_query_tiles(shape);
  return static_cast<int>(std::min<int64_t>(num_tiles, num_sms));
}

}  // namespace sala
