// fp8_rows: a block for each row, which it holds in registers (up to 32K columns) between looking
// for the largest value and rounding. Memory bound: 3 bytes an element, 2 read and 1 written.
// Longer rows are read twice, the second time mostly from the L2 cache.

#include "kernels/fp8/launch.h"
#include "kernels/fp8/quantize.cuh"

namespace sala {
namespace {

using Bf16 = __nv_bfloat16;

constexpr int kMaxThreads = 1024, kMaxChunks = 4;
constexpr int kChunkColumns = kWidth<Bf16>;

// The scale of the row that the block's threads have seen the largest parts of.
__device__ Fp8Scale row_scale(uint32_t largest_pair, float* scale) {
  __shared__ uint32_t of_warps[kMaxThreads / 32];
  uint32_t largest = __reduce_max_sync(kAllLanes, larger_half(largest_pair));
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = largest;
  __syncthreads();
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; ++warp) {
    largest = max(largest, of_warps[warp]);
  }
  const Fp8Scale found = fp8_scale(largest);
  if (threadIdx.x == 0) *scale = found.scale;
  return found;
}

template <bool kAligned, int kChunks>
__global__ void __launch_bounds__(kMaxThreads) quantize_rows(const Fp8Quantize op) {
  const int64_t row = blockIdx.x;
  const int columns = static_cast<int>(op.columns);
  const auto* x = static_cast<const Bf16*>(op.x) + row * op.columns;
  const auto column = [](int chunk) {
    return static_cast<int>(threadIdx.x + chunk * blockDim.x) * kChunkColumns;
  };
  Chunk<Bf16> chunks[kChunks];
#pragma unroll
  for (int i = 0; i < kChunks; ++i) chunks[i] = load_chunk<kAligned>(x, column(i), columns);
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kChunks; ++i) largest = larger_pair(largest, chunks[i]);
  const Fp8Scale scale = row_scale(largest, op.by_rows.scale + row);
  uint8_t* values = static_cast<uint8_t*>(op.by_rows.values) + row * op.columns;
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    store_rounded<kAligned>(widen(chunks[i]), scale.inverse, values, column(i), columns);
  }
}

template <bool kAligned>
__global__ void __launch_bounds__(kMaxThreads) quantize_long_rows(const Fp8Quantize op) {
  const int64_t row = blockIdx.x;
  const int columns = static_cast<int>(op.columns);
  const auto* x = static_cast<const Bf16*>(op.x) + row * op.columns;
  const int first = static_cast<int>(threadIdx.x) * kChunkColumns;
  const int step = static_cast<int>(blockDim.x) * kChunkColumns;
  uint32_t largest = 0;
  for (int column = first; column < columns; column += step) {
    largest = larger_pair(largest, load_chunk<kAligned>(x, column, columns));
  }
  const Fp8Scale scale = row_scale(largest, op.by_rows.scale + row);
  uint8_t* values = static_cast<uint8_t*>(op.by_rows.values) + row * op.columns;
  for (int column = first; column < columns; column += step) {
    store_rounded<kAligned>(widen(load_chunk<kAligned>(x, column, columns)), scale.inverse, values,
                            column, columns);
  }
}

using Kernel = void (*)(Fp8Quantize);

template <bool kAligned>
Kernel kernel_of(int64_t chunks_per_thread) {
  if (chunks_per_thread == 1) return quantize_rows<kAligned, 1>;
  if (chunks_per_thread == 2) return quantize_rows<kAligned, 2>;
  if (chunks_per_thread <= kMaxChunks) return quantize_rows<kAligned, kMaxChunks>;
  return quantize_long_rows<kAligned>;
}

}  // namespace

int fp8_rows_cuda(const Fp8Quantize& op, CUstream_st* stream) {
  const int64_t chunks = (op.columns + kChunkColumns - 1) / kChunkColumns;
  int threads = 128;
  while (threads < kMaxThreads && threads * kMaxChunks < chunks) threads *= 2;
  const int64_t per_thread = (chunks + threads - 1) / threads;
  const bool aligned = op.columns % kChunkColumns == 0 && all_aligned({op.x, op.by_rows.values});
  const Kernel kernel = aligned ? kernel_of<true>(per_thread) : kernel_of<false>(per_thread);
  kernel<<<static_cast<unsigned>(op.rows), threads, 0, stream>>>(op);
  return cudaGetLastError();
}

bool fp8_cores_cuda() {
  int device = 0, major = 0, minor = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) {
    return false;
  }
  return major > 8 || (major == 8 && minor >= 9);
}

}  // namespace sala
