// fp8_columns: the largest value of every column, then rounding and transposing tile by tile
// through shared memory. Memory bound: 5 bytes an element, 2 read by each kernel and 1 written.
// fp8_rows_and_columns: the same two kernels look for the largest of every row as well, and write
// the rows beside the columns: 6 bytes an element, where two calls (rows.cu) would move 8.
// Maxima come together by atomics on integers: the same bits in any order.

#include "kernels/fp8/launch.h"
#include "kernels/fp8/quantize.cuh"

namespace sala {
namespace {

using Bf16 = __nv_bfloat16;

constexpr int kChunkColumns = kWidth<Bf16>;

// ---------------------------------------------------------------- the largest values

constexpr int kStripColumns = 32 * kChunkColumns;  // of a block: a chunk for each lane
constexpr int kStripRows = 256;                    // each warp takes every eighth

template <bool kAligned, bool kRows>
__global__ void __launch_bounds__(kRowThreads) find_largest(const Fp8Quantize op) {
  __shared__ uint32_t of_warps[kRowWarps][kStripColumns / 2];  // two columns a word
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int columns = static_cast<int>(op.columns);
  const int first = static_cast<int>(blockIdx.x) * kStripColumns;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * kStripRows;
  const int64_t end = min(begin + kStripRows, op.rows);
  uint32_t largest[4] = {};
#pragma unroll 4
  for (int64_t row = begin + warp; row < end; row += kRowWarps) {
    const auto* x = static_cast<const Bf16*>(op.x) + row * op.columns;
    const auto chunk = load_chunk<kAligned>(x, first + lane * kChunkColumns, columns);
#pragma unroll
    for (int i = 0; i < 4; ++i) largest[i] = larger_pair(largest[i], chunk.words[i]);
    if constexpr (kRows) {
      const uint32_t of_row = __reduce_max_sync(kAllLanes, larger_half(larger_pair(0, chunk)));
      if (lane == 0) atomicMax(op.row_largest + row, of_row);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) of_warps[warp][lane * 4 + i] = largest[i];
  __syncthreads();
  const int column = first + static_cast<int>(threadIdx.x);
  static_assert(kStripColumns == kRowThreads, "one column for each thread");
  if (column >= columns) return;
  uint32_t pair = 0;
#pragma unroll
  for (int w = 0; w < kRowWarps; ++w) pair = larger_pair(pair, of_warps[w][threadIdx.x / 2]);
  atomicMax(op.column_largest + column, threadIdx.x % 2 == 0 ? pair & 0xffffu : pair >> 16);
}

// ---------------------------------------------------------------- rounded and transposed

constexpr int kTileRows = 128, kTileColumns = 64;
constexpr int kWordRows = 4;                       // rows of a column in a word of shared memory
constexpr int kPitch = kTileRows / kWordRows + 1;  // words; odd: a column's words lie in all banks
constexpr int kTileChunks = kTileColumns / kChunkColumns;
static_assert(kTileChunks * (kTileRows / kWordRows) == kRowThreads);

// Four rows of the chunk of columns that a thread reads.
template <bool kAligned>
__device__ void load_rows(const Fp8Quantize& op, int64_t row, int column,
                          Values<Bf16> (&x)[kWordRows]) {
#pragma unroll
  for (int r = 0; r < kWordRows; ++r) {
    Chunk<Bf16> chunk{};
    if (row + r < op.rows) {
      chunk = load_chunk<kAligned>(static_cast<const Bf16*>(op.x) + (row + r) * op.columns, column,
                                   static_cast<int>(op.columns));
    }
    x[r] = widen(chunk);
  }
}

// A word for each column.
__device__ void round_words(const Fp8Quantize& op, const Values<Bf16> (&x)[kWordRows], int column,
                            uint32_t (&words)[kChunkColumns]) {
#pragma unroll
  for (int i = 0; i < kChunkColumns; ++i) {
    const uint32_t magnitude = column + i < op.columns ? op.column_largest[column + i] : 0;
    const float inverse = fp8_scale(magnitude).inverse;
    words[i] = fp8_pair(x[0].v[i] * inverse, x[1].v[i] * inverse) |
               fp8_pair(x[2].v[i] * inverse, x[3].v[i] * inverse) << 16;
  }
}

template <bool kAligned>
__device__ void store_rows(const Fp8Quantize& op, const Values<Bf16> (&x)[kWordRows], int64_t row,
                           int column) {
#pragma unroll
  for (int r = 0; r < kWordRows; ++r) {
    if (row + r >= op.rows) break;
    const Fp8Scale scale = fp8_scale(op.row_largest[row + r]);
    store_rounded<kAligned>(x[r], scale.inverse,
                            static_cast<uint8_t*>(op.by_rows.values) + (row + r) * op.columns,
                            column, static_cast<int>(op.columns));
    if (column == 0) op.by_rows.scale[row + r] = scale.scale;
  }
}

// 16 rows of a column.
template <bool kAligned>
__device__ void store_words(const uint32_t* words, uint8_t* values, int64_t row, int64_t rows) {
  if (row >= rows) return;
  if constexpr (kAligned) {
    *reinterpret_cast<uint4*>(values + row) = make_uint4(words[0], words[1], words[2], words[3]);
  } else {
    for (int i = 0; i < 16 && row + i < rows; ++i) {
      values[row + i] = static_cast<uint8_t>(words[i / 4] >> (i % 4 * 8));
    }
  }
}

template <bool kAligned, bool kRows>
__global__ void __launch_bounds__(kRowThreads) quantize(const Fp8Quantize op) {
  __shared__ uint32_t tile[kTileColumns][kPitch];
  const int first_column = static_cast<int>(blockIdx.x) * kTileColumns;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kTileRows;
  {
    const int chunk = threadIdx.x % kTileChunks, word = threadIdx.x / kTileChunks;
    const int64_t row = first_row + word * kWordRows;
    const int column = first_column + chunk * kChunkColumns;
    Values<Bf16> x[kWordRows];
    load_rows<kAligned>(op, row, column, x);
    if constexpr (kRows) store_rows<kAligned>(op, x, row, column);
    uint32_t words[kChunkColumns];
    round_words(op, x, column, words);
#pragma unroll
    for (int i = 0; i < kChunkColumns; ++i) tile[chunk * kChunkColumns + i][word] = words[i];
  }
  __syncthreads();
  constexpr int kParts = kTileRows / 16;
  const int part = threadIdx.x % kParts;
#pragma unroll
  for (int c = threadIdx.x / kParts; c < kTileColumns; c += kRowThreads / kParts) {
    const int64_t column = first_column + c;
    if (column >= op.columns) continue;
    store_words<kAligned>(&tile[c][part * 4],
                          static_cast<uint8_t*>(op.by_columns.values) + column * op.rows,
                          first_row + part * 16, op.rows);
    if (blockIdx.y == 0 && part == 0) {
      op.by_columns.scale[column] = fp8_scale(op.column_largest[column]).scale;
    }
  }
}

template <bool kAligned, bool kRows>
void launch_kernels(const Fp8Quantize& op, CUstream_st* stream) {
  const auto blocks = [](int64_t size, int tile) {
    return static_cast<unsigned>((size + tile - 1) / tile);
  };
  const dim3 strips(blocks(op.columns, kStripColumns), blocks(op.rows, kStripRows));
  find_largest<kAligned, kRows><<<strips, kRowThreads, 0, stream>>>(op);
  const dim3 tiles(blocks(op.columns, kTileColumns), blocks(op.rows, kTileRows));
  quantize<kAligned, kRows><<<tiles, kRowThreads, 0, stream>>>(op);
}

template <bool kRows>
int launch(const Fp8Quantize& op, CUstream_st* stream) {
  const bool aligned = op.columns % kChunkColumns == 0 && op.rows % 16 == 0 &&
                       all_aligned({op.x, op.by_columns.values, op.by_rows.values});
  aligned ? launch_kernels<true, kRows>(op, stream) : launch_kernels<false, kRows>(op, stream);
  return cudaGetLastError();
}

}  // namespace

int fp8_columns_cuda(const Fp8Quantize& op, CUstream_st* stream) {
  return launch<false>(op, stream);
}

int fp8_both_cuda(const Fp8Quantize& op, CUstream_st* stream) { return launch<true>(op, stream); }

}  // namespace sala
