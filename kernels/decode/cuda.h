// The tensor side of the CUDA kernels of the decode step.
#pragma once

#include <ATen/ATen.h>

#include "kernels/decode.h"

namespace sala {

// bf16 on compute capability 8.0 and later, head sizes 64 and 128, groups up to 16.
bool decode_kernels_run(const KeyCacheShape& shape);
// These, compute capability 9.0 and at most 32K blocks.
bool decode_select_kernels_run(const KeyCacheShape& shape);
// Whether decode_attention's kernel takes lists of such blocks.
bool decode_blocks_run(const SparseConfig& config);

// The same of a call: on a GPU what it lacks is told (kernels/paths.h).
bool append_kernel_runs(const at::Tensor& k, const KeyCache& cache);
bool decode_attention_kernels_run(const at::Tensor& q, const KeyCache& cache,
                                  const SparseConfig& config, double scale);
bool decode_select_kernels_run(const at::Tensor& q, const KeyCache& cache,
                               const SparseConfig& config);

// Tiles of 128 compressed keys that one KV head of a sequence has room for.
struct CompressedTiles {
  int64_t fine = 0, coarse = 0;
  int64_t count() const { return fine + coarse; }
};
CompressedTiles compressed_tiles(int64_t capacity, const SparseConfig& config);

// As decode.h has them; inputs are checked. `compressed.tiles` where the selection kernels run.
void compress_keys_cuda(KeyCache& cache, int64_t s, int64_t num_tokens, const SparseConfig& config);
void append_keys_cuda(KeyCache& cache, const DecodeLengths& lengths, const at::Tensor& k,
                      const at::Tensor& v, const SparseConfig& config);
at::Tensor decode_select_cuda(const at::Tensor& q, const KeyCache& cache,
                              const DecodeLengths& lengths, const SparseConfig& config,
                              double scale);
at::Tensor decode_attention_cuda(const at::Tensor& q, const KeyCache& cache,
                                 const DecodeLengths& lengths, const at::Tensor& blocks,
                                 const SparseConfig& config, double scale);

}  // namespace sala
