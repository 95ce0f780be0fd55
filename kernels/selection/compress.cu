// Compressed keys: means over windows of 2 * stride tokens, and over the four times wider coarse
// ones, every 4 * stride. A block of threads makes kRun windows and the coarse ones that begin with
// them from the sums of half windows, in shared memory.
#include "kernels/selection/compressed.cuh"
#include "kernels/selection/places.cuh"

namespace sala {
namespace {

constexpr int kRun = 32;           // windows of a block of threads
constexpr int kHalves = kRun + 4;  // half windows that they and their coarse windows need
constexpr int kThreads = 256;

template <int HS>
__global__ void __launch_bounds__(kThreads)
    compress_kernel(const __nv_bfloat16* k, __nv_bfloat16* compressed,
                    const __grid_constant__ SelectInput input) {
  constexpr int kChunks = HS / 8, kTeams = kThreads / kChunks;
  constexpr int kRunsPerTile = kSelectKeyTile / kRun;
  __shared__ float sums[kHalves][HS];
  const int tile = blockIdx.x / kRunsPerTile, head = blockIdx.y;
  const int entry = find_entry(input.key_tiles, 2 * input.num_docs, tile), doc = entry / 2;
  if (entry % 2 == 1) return;  // coarse windows are made beside the others
  const int first_key = input.k_offsets[doc], num_keys = input.k_offsets[doc + 1] - first_key;
  const int first = (tile - input.key_tiles[entry]) * kSelectKeyTile +
                    blockIdx.x % kRunsPerTile * kRun;  // window and half window
  const int windows = num_windows(num_keys, input.stride);
  const int coarse_windows = num_windows(num_keys, 4 * input.stride);
  const int team = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;

  for (int h = team; h < kHalves; h += kTeams) {
    Values<__nv_bfloat16> sum{};
    if ((first + h + 1) * input.stride <= num_keys) {
      const int64_t token = first_key + (first + h) * input.stride;
      sum = sum_of_rows(k + (token * input.num_kv_heads + head) * HS, input.stride,
                        input.num_kv_heads * HS, chunk, HS);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[h][chunk * 8 + i] = sum.v[i];
  }
  __syncthreads();

  __nv_bfloat16* tiles_of_head =
      compressed + static_cast<int64_t>(head) * input.num_key_tiles * kSelectKeyTile * HS;
  const auto tile_at = [&](int number) {
    return tiles_of_head + static_cast<int64_t>(number) * kSelectKeyTile * HS;
  };
  for (int w = team; w < kRun && first + w < windows; w += kTeams) {
    store_piece(tile_at(tile), row_of_window((first + w) % kSelectKeyTile), chunk,
                mean_of<HS>(sums, w, 2, chunk, input.stride));
  }
  for (int w = team; w < kRun / 4 && first / 4 + w < coarse_windows; w += kTeams) {
    const int number = first / 4 + w;
    store_piece(tile_at(input.key_tiles[entry + 1] + number / kSelectKeyTile),
                number % kSelectKeyTile, chunk, mean_of<HS>(sums, 4 * w, 8, chunk, input.stride));
  }
}

template <int HS>
int launch_compress(const void* k, void* compressed, const SelectInput& input,
                    cudaStream_t stream) {
  const dim3 grid(input.num_key_tiles * (kSelectKeyTile / kRun), input.num_kv_heads);
  compress_kernel<HS><<<grid, kThreads, 0, stream>>>(
      static_cast<const __nv_bfloat16*>(k), static_cast<__nv_bfloat16*>(compressed), input);
  return cudaGetLastError();
}

}  // namespace

int launch_select_compress(const void* k, void* compressed, const SelectInput& input,
                           CUstream_st* stream) {
  if (input.head_size == 64) return launch_compress<64>(k, compressed, input, stream);
  if (input.head_size == 128) return launch_compress<128>(k, compressed, input, stream);
  return cudaErrorInvalidValue;
}

}  // namespace sala
