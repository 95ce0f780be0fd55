// The decode step of lightning attention. A block takes one head of one sequence: warps take rows
// of the state in turn, lanes take four columns each, so that reads and writes of the state are
// whole 512-byte rows; the sums over rows meet in shared memory, in a fixed order.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/lightning/launch.h"

namespace sala {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * 32, kMaxHeadSize = kLightningStepMaxHeadSize;
constexpr int kColumns = 4;                              // of a lane
constexpr int kPasses = kMaxHeadSize / (32 * kColumns);  // of a warp over a row

template <typename T>
__global__ void __launch_bounds__(kThreads)
    step_kernel(const T* q, const T* k, const T* v, const float* state, T* o, float* next,
                int num_heads, int HS, float scale,
                const __grid_constant__ LightningDecays decays) {
  __shared__ float q_row[kMaxHeadSize], k_row[kMaxHeadSize];
  __shared__ float4 sums[kWarps][kMaxHeadSize / kColumns];
  const int64_t at = blockIdx.x;  // sequence * num_heads + head
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int i = threadIdx.x; i < HS; i += kThreads) {
    q_row[i] = static_cast<float>(q[at * HS + i]);
    k_row[i] = static_cast<float>(k[at * HS + i]);
  }
  __syncthreads();
  const float decay = decays.values[at % num_heads];
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int column = (pass * 32 + lane) * kColumns;
    if (column >= HS) break;
    float values[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) values[c] = static_cast<float>(v[at * HS + column + c]);
    float4 sum = {0, 0, 0, 0};
    for (int row = warp; row < HS; row += kWarps) {
      const int64_t place = (at * HS + row) * HS + column;
      float4 s = {0, 0, 0, 0};
      if (state != nullptr) s = *reinterpret_cast<const float4*>(state + place);
      const float key = k_row[row], query = q_row[row];
      s = {decay * s.x + key * values[0], decay * s.y + key * values[1],
           decay * s.z + key * values[2], decay * s.w + key * values[3]};
      *reinterpret_cast<float4*>(next + place) = s;
      sum = {sum.x + query * s.x, sum.y + query * s.y, sum.z + query * s.z, sum.w + query * s.w};
    }
    sums[warp][column / kColumns] = sum;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < HS; i += kThreads) {
    float total = 0;
    for (int w = 0; w < kWarps; ++w) total += reinterpret_cast<const float*>(sums[w])[i];
    o[at * HS + i] = static_cast<T>(scale * total);
  }
}

}  // namespace

int launch_lightning_step(const void* q, const void* k, const void* v, const float* state, void* o,
                          float* next, bool is_bf16, int64_t num_docs, int64_t num_heads,
                          int64_t head_size, float scale, const LightningDecays& decays,
                          CUstream_st* stream) {
  const int64_t blocks = num_docs * num_heads;
  if (blocks == 0) return cudaSuccess;
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    step_kernel<T><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
        static_cast<const T*>(q), static_cast<const T*>(k), static_cast<const T*>(v), state,
        static_cast<T*>(o), next, static_cast<int>(num_heads), static_cast<int>(head_size), scale,
        decays);
  };
  is_bf16 ? run(__nv_bfloat16{}) : run(float{});
  return cudaGetLastError();
}

}  // namespace sala
