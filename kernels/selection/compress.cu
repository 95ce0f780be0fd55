// Compressed keys: means over windows of 2 * stride tokens, and over the four times wider coarse
// ones, every 4 * stride. A block of threads makes kRun windows and the coarse ones that begin with
// them from the sums of half windows, in shared memory.
//
// A tile of 128 keys is HS / 64 pieces of 128 swizzled rows (gpu/shared_tiles.cuh), so that one
// plain copy brings it where the products read it. The rows of a tile of windows are permuted: the
// four windows of a block lie where one thread's accumulators will hold them.
#include "kernels/gpu/shared_tiles.cuh"
#include "kernels/rows/rows.cuh"
#include "kernels/selection/places.cuh"

namespace sala {
namespace {

constexpr int kRun = 32;           // windows of a block of threads
constexpr int kHalves = kRun + 4;  // half windows that they and their coarse windows need
constexpr int kThreads = 256;

// Row of window w of a tile: block w / 4 belongs to warp w / 32 and its lanes 4 (w / 4 % 8) and on;
// windows 0 .. 3 of it to their rows in the tile's first and second 64 rows.
__device__ __forceinline__ int row_of_window(int w) {
  return 64 * (w % 4 / 2) + 16 * (w / 32) + 8 * (w % 2) + w / 4 % 8;
}

template <int HS>
__device__ __forceinline__ void store_piece(__nv_bfloat16* tile, int row, int chunk,
                                            const Values<__nv_bfloat16>& values) {
  char* to = reinterpret_cast<char*>(tile) + chunk / 8 * kSelectKeyTile * tiles::kRowBytes +
             tiles::piece_offset(row, chunk % 8);
  store_chunk<true>(round_to_type(values), reinterpret_cast<__nv_bfloat16*>(to), 0, 8);
}

// The mean of `count` half windows from `first` on.
template <int HS>
__device__ __forceinline__ Values<__nv_bfloat16> mean_of(const float (&sums)[kHalves][HS],
                                                         int first, int count, int chunk,
                                                         int stride) {
  Values<__nv_bfloat16> mean{};
  for (int h = first; h < first + count; ++h) {
#pragma unroll
    for (int i = 0; i < 8; ++i) mean.v[i] += sums[h][chunk * 8 + i];
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) mean.v[i] /= static_cast<float>(count * stride);
  return mean;
}

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
      const __nv_bfloat16* row = k + (token * input.num_kv_heads + head) * HS;
      for (int t = 0; t < input.stride; ++t, row += input.num_kv_heads * HS) {
        const Values<__nv_bfloat16> x = widen(load_chunk<true>(row, chunk * 8, HS));
#pragma unroll
        for (int i = 0; i < 8; ++i) sum.v[i] += x.v[i];
      }
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
    store_piece<HS>(tile_at(tile), row_of_window((first + w) % kSelectKeyTile), chunk,
                    mean_of<HS>(sums, w, 2, chunk, input.stride));
  }
  for (int w = team; w < kRun / 4 && first / 4 + w < coarse_windows; w += kTeams) {
    const int number = first / 4 + w;
    store_piece<HS>(tile_at(input.key_tiles[entry + 1] + number / kSelectKeyTile),
                    number % kSelectKeyTile, chunk,
                    mean_of<HS>(sums, 4 * w, 8, chunk, input.stride));
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
