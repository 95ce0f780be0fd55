// Launcher of the squared error (squared_error.cu). No torch here.
#pragma once

#include "kernels/rows/launch.h"

namespace sala {

struct SquaredError {
  ElementType type;
  int64_t num_elements;  // a multiple of a chunk's; addresses are multiples of 16
  const void *y, *target;
  void* dy;
  float factor;  // 2 scale
};
// How many partial sums it leaves.
int64_t squared_error_partials(const SquaredError& op);
// Ordered on `stream`, never blocks, returns the launch's cudaError_t. `partials`: of the squares.
int squared_error_cuda(const SquaredError& op, double* partials, CUstream_st* stream);

}  // namespace sala
