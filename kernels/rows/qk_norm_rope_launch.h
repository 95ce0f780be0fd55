// Launchers of the QK-norm and rotation kernels (qk_norm_rope.cu) on raw pointers; formulas and
// shapes as in kernels/ops.h. Ordered on `stream`, never block, return the launch's cudaError_t.
// An even HS with HS * element size <= kMaxHeadBytes. No torch here.
#pragma once

#include "kernels/rows/launch.h"

namespace sala {

constexpr int64_t kMaxHeadBytes = 1024;  // a warp's 32 lanes with one chunk of each half

// No weight: no norm, rstd is not written. No cos: no rotation.
struct RopeForward {
  ElementType type;
  int64_t T;
  int N, HS;
  float eps;
  const void *x, *weight;
  int64_t x_stride;  // elements from token to token; y is dense
  const float *cos, *sin;
  void* y;
  float* rstd;
};
int qk_norm_rope_forward_cuda(const RopeForward& op, CUstream_st* stream);

// Without a weight x, rstd, dweight and partials are not touched; else `partials`
// (max_partials(), HS) is scratch.
struct RopeBackward {
  ElementType type;
  int64_t T;
  int N, HS;
  const void *dy, *x, *weight;
  int64_t dx_stride;  // elements from token to token; dy and x are dense
  const float *rstd, *cos, *sin;
  void* dx;
  float* dweight;
  float* partials;
};
int qk_norm_rope_backward_cuda(const RopeBackward& op, CUstream_st* stream);

}  // namespace sala
