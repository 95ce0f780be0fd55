// AdamW over a flat shard, one pass. Memory bound: 16 bytes read and 12 to 16 written per element.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/rows/adamw_launch.h"

namespace sala {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;

// blockIdx.y is the range.
template <typename Copy>
__global__ void adamw_kernel(float* __restrict__ master, float* __restrict__ m,
                             float* __restrict__ v, Copy* __restrict__ copy,
                             const float* __restrict__ grad,
                             const __grid_constant__ AdamWTable table) {
  const AdamWRange range = table.ranges[blockIdx.y];
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t end = range.begin + range.count;
  for (int64_t i = range.begin + static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < end; i += stride) {
    float m_i = m[i], v_i = v[i];
    const float w = adamw_element(master[i], m_i, v_i, grad[i], table.factors, range);
    master[i] = w;
    m[i] = m_i;
    v[i] = v_i;
    if (copy != nullptr) copy[i] = static_cast<Copy>(w);
  }
}

}  // namespace

int adamw_cuda(float* master, float* m, float* v, void* copy, CopyType copy_type, const float* grad,
               const AdamWTable& table, CUstream_st* stream) {
  int64_t longest = 0;
  for (int r = 0; r < table.num_ranges; ++r) longest = std::max(longest, table.ranges[r].count);
  if (longest == 0) return cudaSuccess;
  // As many blocks as the longest range needs; of the others most have nothing to do.
  const dim3 blocks(
      static_cast<unsigned>(std::min<int64_t>((longest + kThreads - 1) / kThreads, kMaxBlocks)),
      static_cast<unsigned>(table.num_ranges));
  if (copy_type == CopyType::kBFloat16) {
    adamw_kernel<<<blocks, kThreads, 0, stream>>>(master, m, v, static_cast<__nv_bfloat16*>(copy),
                                                  grad, table);
  } else {
    adamw_kernel<<<blocks, kThreads, 0, stream>>>(master, m, v, static_cast<float*>(copy), grad,
                                                  table);
  }
  return cudaGetLastError();
}

}  // namespace sala
