// Descriptions of (T, NH, HS) bf16 tensors for Hopper's copy engine: boxes of 64 columns of some
// heads of some tokens, 64 tokens x one head unless said otherwise, which land in shared memory as
// swizzled tiles (hopper.cuh), a row per token and head. Tokens past the end read as zero.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace sala {

// `data` must be 16-byte aligned. Returns a cudaError_t.
int make_tile_map(CUtensorMap* map, const void* data, int64_t T, int64_t NH, int64_t HS,
                  int box_tokens = 64, int box_heads = 1);

}  // namespace sala
