// What the launchers of the row kernels (rmsnorm, gated norm, QK-norm with rotation) share with
// their callers: element types, the longest row, and the room for weight gradients. No torch here.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace sala {

enum class ElementType { kFloat, kBFloat16 };

// A row is held in the registers of one block of threads.
constexpr int64_t kMaxRowBytes = 16384;

// Most partial sums that a backward kernel leaves for its weight gradient on the current device:
// one per block. The caller brings room for as many rows of fp32.
int64_t max_partials();

// out (C) = the sum over `partials` (num_partials, C) in a fixed order.
int add_partials_cuda(const float* partials, int64_t num_partials, int64_t C, float* out,
                      CUstream_st* stream);

}  // namespace sala
