// Launchers of the swiglu kernels (swiglu.cu) on raw pointers; formulas as in kernels/ops.h.
// Ordered on `stream`, never block, return the launch's cudaError_t. No torch here.
#pragma once

#include "kernels/rows/launch.h"

namespace sala {

// y and dy are dense. Rows of gate and up begin in_stride elements apart, those of d_gate and d_up
// out_stride; where a stride is not C, swiglu_takes_rows() must hold.
struct Swiglu {
  ElementType type;
  int64_t rows, C;
  int64_t in_stride, out_stride;
  const void *gate, *up;
  void* y;         // forward
  const void* dy;  // backward
  void *d_gate, *d_up;
};
// Rows that lie apart are read in whole chunks of 16 bytes: C, strides and addresses of such.
bool swiglu_takes_rows(const Swiglu& op);
int swiglu_forward_cuda(const Swiglu& op, CUstream_st* stream);
int swiglu_backward_cuda(const Swiglu& op, CUstream_st* stream);

}  // namespace sala
