// Launchers of the swiglu kernels (swiglu.cu) on raw pointers to num_elements elements; formulas as
// in kernels/ops.h. Ordered on `stream`, never block, return the launch's cudaError_t. No torch
// here.
#pragma once

#include "kernels/rows/rows_launch.h"

namespace sala {

int swiglu_forward_cuda(ElementType type, const void* gate, const void* up, void* y,
                        int64_t num_elements, CUstream_st* stream);
int swiglu_backward_cuda(ElementType type, const void* dy, const void* gate, const void* up,
                         void* d_gate, void* d_up, int64_t num_elements, CUstream_st* stream);

}  // namespace sala
