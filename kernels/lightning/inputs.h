// Host side of the lightning kernels' launches: descriptions of their inputs and shared memory.
#pragma once

#include "kernels/gpu/tensor_map.h"
#include "kernels/lightning/arch.cuh"

namespace sala {

template <int kCount>
int make_inputs(MappedInputs<kCount>* inputs, const void* const (&tensors)[kCount], int64_t HS,
                const LightningLine& line) {
  for (int n = 0; n < kCount; ++n) {
    const int error =
        make_tile_map(&inputs->maps[n], tensors[n], line.num_tokens, line.num_heads, HS);
    if (error) return error;
  }
  return cudaSuccess;
}

template <int kCount>
int make_inputs(PlainInputs<kCount>* inputs, const void* const (&tensors)[kCount], int64_t,
                const LightningLine&) {
  for (int n = 0; n < kCount; ++n) {
    inputs->data[n] = static_cast<const __nv_bfloat16*>(tensors[n]);
  }
  return cudaSuccess;
}

template <class Kernel>
int allow_shared(Kernel* kernel, int num_bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, num_bytes);
}

// Dynamic shared memory that a block may have beside the kernels' static arrays: of this device,
// and of the device with the least (compute capability 8.6).
constexpr int kStaticSharedBytes = 2048;
constexpr int kLeastSharedBytes = 99 * 1024 - kStaticSharedBytes;
inline int max_shared_bytes() {
  int device = 0, num_bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&num_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return num_bytes - kStaticSharedBytes;
}

}  // namespace sala
