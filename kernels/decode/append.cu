// New keys and values go to their places in the caches; where a token ends a window, its compressed
// key is made from the cached keys, in the order in which compress.cu adds them: the same bits.
// A block of threads takes one KV head of one sequence, a team of HS / 8 threads a row.
#include "kernels/decode/launch.h"
#include "kernels/selection/compressed.cuh"

namespace sala {
namespace {

constexpr int kTeams = 8;  // half windows of a coarse window

template <int HS>
__global__ void __launch_bounds__(kTeams*(HS / 8))
    append_kernel(const __grid_constant__ DecodeAppend x) {
  constexpr int kChunks = HS / 8;
  using T = __nv_bfloat16;
  const int head = blockIdx.x, sequence = blockIdx.y;
  const int team = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
  const int n = x.tokens[sequence];
  if (n < 1 || n > x.capacity) return;
  const int64_t first = static_cast<int64_t>(sequence) * x.capacity;
  if (team < 2) {
    const void* from = team == 0 ? x.k : x.v;
    void* to = team == 0 ? x.k_cache : x.v_cache;
    const int64_t row = static_cast<int64_t>(sequence) * x.num_kv_heads + head;
    const int64_t place = (first + n - 1) * x.num_kv_heads + head;
    store_chunk<true>(load_chunk<true>(static_cast<const T*>(from) + row * HS, chunk * 8, HS),
                      static_cast<T*>(to) + place * HS, chunk * 8, HS);
  }
  if (x.tiles == nullptr || n % x.stride != 0) return;
  const int halves = n / x.stride;
  const bool fine = halves >= 2, coarse = halves % 4 == 0 && halves >= 8;
  if (!fine) return;
  __syncthreads();  // the block's own row is read below
  __shared__ float sums[kTeams][HS];
  if (coarse || team >= kTeams - 2) {
    const int64_t token = first + static_cast<int64_t>(halves - kTeams + team) * x.stride;
    const Values<T> sum =
        sum_of_rows(static_cast<const T*>(x.k_cache) + (token * x.num_kv_heads + head) * HS,
                    x.stride, static_cast<int64_t>(x.num_kv_heads) * HS, chunk, HS);
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[team][chunk * 8 + i] = sum.v[i];
  }
  __syncthreads();
  const int64_t tile_size = static_cast<int64_t>(kSelectKeyTile) * HS;
  T* tiles_of_head =
      static_cast<T*>(x.tiles) + (static_cast<int64_t>(sequence) * x.num_kv_heads + head) *
                                     (x.fine_tiles + x.coarse_tiles) * tile_size;
  if (team == 0) {
    const int w = halves - 2;
    store_piece(tiles_of_head + w / kSelectKeyTile * tile_size, row_of_window(w % kSelectKeyTile),
                chunk, mean_of<HS>(sums, kTeams - 2, 2, chunk, x.stride));
  } else if (team == 1 && coarse) {
    const int w = halves / 4 - 2;
    store_piece(tiles_of_head + (x.fine_tiles + w / kSelectKeyTile) * tile_size, w % kSelectKeyTile,
                chunk, mean_of<HS>(sums, 0, kTeams, chunk, x.stride));
  }
}

template <int HS>
int launch_append(const DecodeAppend& x, cudaStream_t stream) {
  const dim3 grid(x.num_kv_heads, x.num_sequences);
  append_kernel<HS><<<grid, kTeams*(HS / 8), 0, stream>>>(x);
  return cudaGetLastError();
}

}  // namespace

int launch_decode_append(const DecodeAppend& x, int64_t head_size, CUstream_st* stream) {
  if (head_size == 64) return launch_append<64>(x, stream);
  if (head_size == 128) return launch_append<128>(x, stream);
  return cudaErrorInvalidValue;
}

}  // namespace sala
