// AdamW over a flat shard, one pass. Memory bound: 16 bytes read and 12 to 16 written per element.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/rows/adamw_launch.h"

namespace sala {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;

template <typename Copy>
__global__ void adamw_kernel(float* __restrict__ master, float* __restrict__ m,
                             float* __restrict__ v, Copy* __restrict__ copy,
                             const float* __restrict__ grad, AdamWFactors factors,
                             int64_t num_elements) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < num_elements;
       i += stride) {
    float m_i = m[i], v_i = v[i];
    const float w = adamw_element(master[i], m_i, v_i, grad[i], factors);
    master[i] = w;
    m[i] = m_i;
    v[i] = v_i;
    if (copy != nullptr) copy[i] = static_cast<Copy>(w);
  }
}

}  // namespace

int adamw_cuda(float* master, float* m, float* v, void* copy, CopyType copy_type, const float* grad,
               const AdamWFactors& factors, int64_t num_elements, CUstream_st* stream) {
  if (num_elements == 0) return cudaSuccess;
  const int blocks =
      static_cast<int>(std::min<int64_t>((num_elements + kThreads - 1) / kThreads, kMaxBlocks));
  if (copy_type == CopyType::kBFloat16) {
    adamw_kernel<<<blocks, kThreads, 0, stream>>>(master, m, v, static_cast<__nv_bfloat16*>(copy),
                                                  grad, factors, num_elements);
  } else {
    adamw_kernel<<<blocks, kThreads, 0, stream>>>(master, m, v, static_cast<float*>(copy), grad,
                                                  factors, num_elements);
  }
  return cudaGetLastError();
}

}  // namespace sala
