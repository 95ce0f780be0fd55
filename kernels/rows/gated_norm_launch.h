// Launchers of the gated norm kernels (gated_norm.cu) on raw pointers; formulas and shapes as in
// kernels/ops.h. Ordered on `stream`, never block, return the launch's cudaError_t.
// C * element size <= kMaxRowBytes. No torch here.
#pragma once

#include "kernels/rows/launch.h"

namespace sala {

// Without a weight there is no norm, and rstd is not written.
struct GateForward {
  ElementType type;
  int64_t rows;
  int C;
  float eps;
  const void *o, *z, *weight;
  int64_t z_stride;  // elements from row to row; the others are dense
  void* y;
  float* rstd;
};
int gate_forward_cuda(const GateForward& op, CUstream_st* stream);

// Without a weight rstd, dweight and partials are not touched; else `partials` (max_partials(), C)
// is scratch.
struct GateBackward {
  ElementType type;
  int64_t rows;
  int C;
  const void *dy, *o, *z, *weight;
  const float* rstd;
  int64_t z_stride, dz_stride;  // elements from row to row; the others are dense
  void *d_o, *dz;
  float* dweight;
  float* partials;
};
int gate_backward_cuda(const GateBackward& op, CUstream_st* stream);

}  // namespace sala
