// Memory bound: 6 bytes for each bf16 element (y, target, dy). Every thread takes four chunks of 16
// bytes of each tensor, a block's width apart, and every block leaves one partial sum: added in
// order, they are the same at every call.
#include "kernels/rows/rows.cuh"
#include "kernels/rows/squared_error_launch.h"

namespace sala {
namespace {

constexpr int kPerThread = 4;

template <typename T>
int64_t elements_of_block() {
  return int64_t{kRowThreads} * kPerThread * kWidth<T>;
}

__device__ double block_sum(float value) {
  __shared__ double of_warp[kRowWarps];
  double sum = value;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
#pragma unroll
  for (int warp = 0; warp < kRowWarps; ++warp) sum += of_warp[warp];
  return sum;
}

template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    squared_error(const SquaredError op, double* partials) {
  const auto* y = static_cast<const T*>(op.y);
  const auto* target = static_cast<const T*>(op.target);
  const int64_t first =
      (static_cast<int64_t>(blockIdx.x) * kPerThread * kRowThreads + threadIdx.x) * kWidth<T>;
  Chunk<T> a[kPerThread], b[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int64_t at = first + int64_t{i} * kRowThreads * kWidth<T>;
    const bool inside = at < op.num_elements;
    a[i] = inside ? load_chunk<true>(y + at, 0, kWidth<T>) : Chunk<T>{};
    b[i] = inside ? load_chunk<true>(target + at, 0, kWidth<T>) : Chunk<T>{};
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int64_t at = first + int64_t{i} * kRowThreads * kWidth<T>;
    const Values<T> left = widen(a[i]), right = widen(b[i]);
    Values<T> d;
#pragma unroll
    for (int j = 0; j < kWidth<T>; ++j) {
      const float difference = left.v[j] - right.v[j];
      sum += difference * difference;
      d.v[j] = op.factor * difference;
    }
    if (at < op.num_elements) {
      store_chunk<true>(round_to_type(d), static_cast<T*>(op.dy) + at, 0, kWidth<T>);
    }
  }
  const double total = block_sum(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

template <typename T>
int launch(const SquaredError& op, double* partials, CUstream_st* stream) {
  squared_error<T>
      <<<static_cast<unsigned>(squared_error_partials(op)), kRowThreads, 0, stream>>>(op, partials);
  return cudaGetLastError();
}

}  // namespace

int64_t squared_error_partials(const SquaredError& op) {
  const int64_t of_block = op.type == ElementType::kFloat ? elements_of_block<float>()
                                                          : elements_of_block<__nv_bfloat16>();
  return (op.num_elements + of_block - 1) / of_block;
}

int squared_error_cuda(const SquaredError& op, double* partials, CUstream_st* stream) {
  if (op.num_elements == 0) return cudaSuccess;
  return op.type == ElementType::kFloat ? launch<float>(op, partials, stream)
                                        : launch<__nv_bfloat16>(op, partials, stream);
}

}  // namespace sala
