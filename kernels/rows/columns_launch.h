// Launcher of the copy of rows that lie apart (columns.cu). No torch here.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace sala {

// Rows of `chunks` chunks of 16 bytes, whose first ones lie `from_stride` and `to_stride` chunks
// apart; both addresses are multiples of 16.
struct RowsCopy {
  const void* from;
  void* to;
  int64_t rows, chunks;
  int64_t from_stride, to_stride;
};
// Ordered on `stream`, never blocks, returns the launch's cudaError_t.
int copy_rows_cuda(const RowsCopy& copy, CUstream_st* stream);

}  // namespace sala
