// Transposes block lists: the tokens that listed each block, ascending (block_sparse_launch.h).
//
// A counting sort whose order does not depend on timing: blocks are counted per chunk of tokens
// (integers: the order of additions does not matter), counts become places, and each chunk puts its
// tokens to their places one token after the other, a thread per entry of its list.
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/attention/block_sparse_launch.h"
#include "kernels/attention/block_sparse_tiles.cuh"

namespace sala {
namespace {

constexpr int kThreads = 128, kScanThreads = 1024;

// Calls visit(column, token) for the blocks that token `token` lists and may see, on the threads
// `thread`, thread + num_threads, ...
template <class Visit>
__device__ __forceinline__ void for_each_listed(int token, int doc, int kv_head, int thread,
                                                int num_threads, const BlockSparseShape& shape,
                                                const Visit& visit) {
  const int last = last_visible_block(token, doc, shape);
  const int* list = list_of(token, kv_head, shape);
  for (int i = thread; i < shape.list_length; i += num_threads) {
    const int block = list[i];
    if (block >= 0 && block <= last) visit(shape.k_tiles[doc] + block);
  }
}

__global__ void count_kernel(ListColumns columns, const __grid_constant__ BlockSparseShape shape) {
  const int kv_head = blockIdx.y, first = blockIdx.x * columns.chunk_tokens;
  const int end = min(first + columns.chunk_tokens, shape.num_queries);
  int* counts = columns.counts + (static_cast<int64_t>(kv_head) * columns.num_chunks + blockIdx.x) *
                                     shape.num_blocks;
  for (int token = first + threadIdx.x / 32; token < end; token += kThreads / 32) {
    const int doc = find_document(token, shape.q_offsets, shape.num_docs);
    for_each_listed(token, doc, kv_head, threadIdx.x % 32, 32, shape,
                    [&](int block) { atomicAdd(counts + block, 1); });
  }
}

// Counts of a column's chunks become places within it.
__global__ void column_kernel(ListColumns columns, int num_blocks) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= columns.num_columns) return;
  int* count = columns.counts +
               static_cast<int64_t>(column / num_blocks) * columns.num_chunks * num_blocks +
               column % num_blocks;
  int sum = 0;
  for (int chunk = 0; chunk < columns.num_chunks; ++chunk, count += num_blocks) {
    const int here = *count;
    *count = sum;
    sum += here;
  }
  columns.sizes[column] = sum;
}

struct Totals {
  long long tokens;
  int pieces, shared;  // shared: of columns with more than one piece
  __device__ void add(int size, int piece_tokens) {
    const int n = max(1, (size + piece_tokens - 1) / piece_tokens);
    tokens += size;
    pieces += n;
    shared += n > 1 ? n : 0;
  }
};

// One block: places of all columns and their pieces, each thread a run of columns.
__global__ void __launch_bounds__(kScanThreads) scan_kernel(ListColumns columns) {
  __shared__ Totals totals[kScanThreads];
  const int n = columns.num_columns, run = (n + kScanThreads - 1) / kScanThreads;
  const int begin = min(n, static_cast<int>(threadIdx.x) * run), end = min(n, begin + run);
  Totals mine{};
  for (int i = begin; i < end; ++i) mine.add(columns.sizes[i], columns.piece_tokens);
  totals[threadIdx.x] = mine;
  for (int step = 1; step < kScanThreads; step *= 2) {
    __syncthreads();
    Totals before{};
    if (threadIdx.x >= step) before = totals[threadIdx.x - step];
    __syncthreads();
    totals[threadIdx.x].tokens += before.tokens;
    totals[threadIdx.x].pieces += before.pieces;
    totals[threadIdx.x].shared += before.shared;
  }
  __syncthreads();
  Totals at = totals[threadIdx.x];
  at.tokens -= mine.tokens;
  at.pieces -= mine.pieces;
  at.shared -= mine.shared;
  for (int i = begin; i < end; ++i) {
    columns.starts[i] = at.tokens;
    columns.first_pieces[i] = at.pieces;
    columns.first_shared[i] = at.shared;
    const int first = at.pieces;
    at.add(columns.sizes[i], columns.piece_tokens);
    for (int piece = first; piece < at.pieces; ++piece) columns.piece_columns[piece] = i;
  }
  if (threadIdx.x == kScanThreads - 1) {
    columns.first_pieces[n] = at.pieces;
    columns.first_shared[n] = at.shared;
  }
}

__global__ void __launch_bounds__(kThreads)
    fill_kernel(ListColumns columns, const __grid_constant__ BlockSparseShape shape) {
  const int kv_head = blockIdx.y, first = blockIdx.x * columns.chunk_tokens;
  const int end = min(first + columns.chunk_tokens, shape.num_queries);
  int* places = columns.counts + (static_cast<int64_t>(kv_head) * columns.num_chunks + blockIdx.x) *
                                     shape.num_blocks;
  const int64_t* starts = columns.starts + static_cast<int64_t>(kv_head) * shape.num_blocks;
  int doc = find_document(first, shape.q_offsets, shape.num_docs);
  for (int token = first; token < end; ++token) {
    while (token >= shape.q_offsets[doc + 1]) ++doc;
    for_each_listed(token, doc, kv_head, threadIdx.x, kThreads, shape, [&](int block) {
      columns.tokens[starts[block] + atomicAdd(places + block, 1)] = token;
    });
    __syncthreads();
  }
}

}  // namespace

ListColumns plan_list_columns(const BlockSparseShape& shape) {
  constexpr int64_t kWantedPieces = 3072, kFewestTokens = 512;  // fill the device many times over
  constexpr int64_t kWantedChunks = 256, kFewestChunkTokens = 32, kMostChunkTokens = 512;
  const int64_t entries =
      static_cast<int64_t>(shape.num_kv_heads) * shape.num_queries * shape.list_length;
  ListColumns columns{};
  const int64_t piece = std::max(kFewestTokens, (entries + kWantedPieces - 1) / kWantedPieces);
  columns.piece_tokens = static_cast<int>((piece + 63) / 64 * 64);
  columns.chunk_tokens = static_cast<int>(
      std::clamp(shape.num_queries / kWantedChunks, kFewestChunkTokens, kMostChunkTokens));
  columns.num_columns = shape.num_kv_heads * shape.num_blocks;
  columns.num_chunks = (shape.num_queries + columns.chunk_tokens - 1) / columns.chunk_tokens;
  const int64_t full = entries / columns.piece_tokens;
  columns.max_pieces = static_cast<int>(columns.num_columns + full);
  // A column of several pieces has at most one that is not full.
  columns.max_shared = static_cast<int>(full + std::min<int64_t>(full, columns.num_columns));
  return columns;
}

int launch_list_columns(const ListColumns& columns, const BlockSparseShape& shape,
                        CUstream_st* stream) {
  const int64_t num_counts = static_cast<int64_t>(columns.num_columns) * columns.num_chunks;
  const cudaError_t error = cudaMemsetAsync(columns.counts, 0, num_counts * sizeof(int), stream);
  if (error != cudaSuccess) return error;
  const dim3 chunks(columns.num_chunks, shape.num_kv_heads);
  count_kernel<<<chunks, kThreads, 0, stream>>>(columns, shape);
  column_kernel<<<(columns.num_columns + kThreads - 1) / kThreads, kThreads, 0, stream>>>(
      columns, shape.num_blocks);
  scan_kernel<<<1, kScanThreads, 0, stream>>>(columns);
  fill_kernel<<<chunks, kThreads, 0, stream>>>(columns, shape);
  return cudaGetLastError();
}

}  // namespace sala
