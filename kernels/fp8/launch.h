// Launchers of the FP8 kernels (rows.cu, columns.cu) on raw pointers; what they compute is in
// kernels/fp8.h. Ordered on `stream`, never block, equal bits from run to run, return the launch's
// cudaError_t. No torch here.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace sala {

struct Fp8Output {
  void* values = nullptr;  // e4m3
  float* scale = nullptr;
};

struct Fp8Quantize {
  int64_t rows, columns;          // at least 1 each
  const void* x;                  // (rows, columns) bf16
  Fp8Output by_rows, by_columns;  // values (rows, columns) and (columns, rows)
  // Of fp8_columns_cuda and fp8_both_cuda: (columns), and (rows) of the second, zeros that they
  // write to.
  uint32_t *column_largest = nullptr, *row_largest = nullptr;
};
int fp8_rows_cuda(const Fp8Quantize& op, CUstream_st* stream);
int fp8_columns_cuda(const Fp8Quantize& op, CUstream_st* stream);
int fp8_both_cuda(const Fp8Quantize& op, CUstream_st* stream);

// Of the current device: whether its tensor cores take e4m3.
bool fp8_cores_cuda();

}  // namespace sala
