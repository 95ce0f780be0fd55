// Rows that lie apart, copied in chunks of 16 bytes. A thread loads four of them, a block's width
// apart, before it stores the first.
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/rows/columns_launch.h"

namespace sala {
namespace {

constexpr int kThreads = 256, kPerThread = 4;

__global__ void __launch_bounds__(kThreads) copy_rows(const RowsCopy copy) {
  // Fewer than 2^32 chunks: a tensor of more would have 64 GB.
  const auto chunks = static_cast<unsigned>(copy.chunks);
  const auto all = static_cast<unsigned>(copy.rows) * chunks;
  const unsigned first = blockIdx.x * (kThreads * kPerThread) + threadIdx.x;
  uint4 values[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const unsigned chunk = first + i * kThreads, row = chunk / chunks;
    if (chunk >= all) continue;
    values[i] = static_cast<const uint4*>(copy.from)[row * copy.from_stride + chunk - row * chunks];
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const unsigned chunk = first + i * kThreads, row = chunk / chunks;
    if (chunk >= all) continue;
    static_cast<uint4*>(copy.to)[row * copy.to_stride + chunk - row * chunks] = values[i];
  }
}

}  // namespace

int copy_rows_cuda(const RowsCopy& copy, CUstream_st* stream) {
  const int64_t all = copy.rows * copy.chunks;
  if (all == 0) return cudaSuccess;
  constexpr int64_t kPerBlock = kThreads * kPerThread;
  copy_rows<<<static_cast<unsigned>((all + kPerBlock - 1) / kPerBlock), kThreads, 0, stream>>>(
      copy);
  return cudaGetLastError();
}

}  // namespace sala
