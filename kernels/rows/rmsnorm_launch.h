// Launchers of the rmsnorm and add_rmsnorm kernels (rmsnorm.cu) on raw pointers; formulas and
// shapes as in kernels/ops.h. Ordered on `stream`, never block, return the launch's cudaError_t.
// C * element size <= kMaxRowBytes. No torch here.
#pragma once

#include "kernels/rows/launch.h"

namespace sala {

// u = rmsnorm(x), or of h = x + residual_scale * y where y and h are given.
struct NormForward {
  ElementType type;
  int64_t rows;
  int C;
  float eps, residual_scale;
  const void *x, *y, *weight;
  void *h, *u;
  float* rstd;
};
int norm_forward_cuda(const NormForward& op, CUstream_st* stream);

// dx = the gradient of x, plus dh where it is given. `partials` (max_partials(), C) is scratch.
struct NormBackward {
  ElementType type;
  int64_t rows;
  int C;
  const void *dy, *dh, *x, *weight;
  const float* rstd;
  void* dx;
  float* dweight;
  float* partials;
};
int norm_backward_cuda(const NormBackward& op, CUstream_st* stream);

}  // namespace sala
