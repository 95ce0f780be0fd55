// Launchers of the FP8 kernels (rows.cu, columns.cu) on raw pointers; what they compute is in
// kernels/fp8.h. Ordered on `stream`, never block, equal bits from run to run, return the launch's
// cudaError_t. No torch here.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace sala {

struct Fp8Quantize {
  int64_t rows, columns;  // at least 1 each
  const void* x;          // (rows, columns) bf16
  void* values;           // e4m3: (rows, columns), or (columns, rows)
  float* scale;           // (rows), or (columns)
  uint32_t* largest;      // fp8_columns_cuda alone: (columns) zeros, which it writes to
};
int fp8_rows_cuda(const Fp8Quantize& op, CUstream_st* stream);
int fp8_columns_cuda(const Fp8Quantize& op, CUstream_st* stream);

// Of the current device: whether its tensor cores take e4m3.
bool fp8_cores_cuda();

}  // namespace sala
