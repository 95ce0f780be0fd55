// The second half of a weight gradient: adds the partial sums that the blocks of a backward kernel
// left, in a fixed order. A block takes 32 columns; its 32 warps take every 32nd partial sum.

#include "kernels/rows/rows.cuh"

namespace sala {
namespace {

__global__ void __launch_bounds__(1024)
    add_partials(const float* partials, int64_t num_partials, int64_t C, float* out) {
  __shared__ float sums[32][33];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * 32;
  float sum = 0;
  if (first + lane < C) {
#pragma unroll 8
    for (int64_t p = warp; p < num_partials; p += 32) sum += partials[p * C + first + lane];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  float total = sums[lane][warp];  // this warp's column, one of its sums a lane
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) total += __shfl_xor_sync(kAllLanes, total, offset);
  if (lane == 0 && first + warp < C) out[first + warp] = total;
}

}  // namespace

int64_t max_partials() {
  int device = 0, num_sms = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device);
  return static_cast<int64_t>(num_sms) * kMaxPartialsPerSm;
}

int add_partials_cuda(const float* partials, int64_t num_partials, int64_t C, float* out,
                      CUstream_st* stream) {
  if (C == 0) return cudaSuccess;
  const int blocks = static_cast<int>((C + 31) / 32);
  add_partials<<<blocks, 1024, 0, stream>>>(partials, num_partials, C, out);
  return cudaGetLastError();
}

}  // namespace sala
