// Instructions that every GPU since Ampere has (PTX ISA 7.0, sm_80): copies from global to shared
// memory without registers, and matrix products of one warp. Tiles and fragments are those of
// shared_tiles.cuh.
#pragma once

#include "kernels/gpu/shared_tiles.cuh"

namespace sala::ampere {

using tiles::load_matrices;
using tiles::piece_offset;

// Starts the copy of 16 bytes; zeros where `valid` is false.
__device__ __forceinline__ void copy_piece(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
// The same for 8 bytes.
__device__ __forceinline__ void copy_pair(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 8 : 0)
               : "memory");
}
__device__ __forceinline__ void copies_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most `kPending` groups of this thread's copies are unfinished.
template <int kPending>
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// d (16 x 8) += a (16 x 16) b (16 x 8).
__device__ __forceinline__ void multiply(float* d, const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Rows 16 warp .. 16 warp + 15 of a tile, columns 16 step .. 16 step + 15, as a left operand.
__device__ __forceinline__ void load_left(uint32_t (&a)[4], uint32_t tile, int warp, int lane,
                                          int step) {
  load_matrices(a, tile + piece_offset(16 * warp + (lane & 15), 2 * step + (lane >> 4)));
}
// The right operand of two products, 16 columns from `column` on: of a tile whose rows are the
// columns of the operand,
__device__ __forceinline__ void load_right_by_rows(uint32_t (&b)[4], uint32_t tile, int column,
                                                   int lane, int step) {
  const int row = column + (lane & 7) + ((lane >> 4) & 1) * 8;
  load_matrices(b, tile + piece_offset(row, 2 * step + ((lane >> 3) & 1)));
}
// and of a tile whose rows are the rows of the operand (`column` < 64).
__device__ __forceinline__ void load_right_by_columns(uint32_t (&b)[4], uint32_t tile, int column,
                                                      int lane, int step) {
  const int row = 16 * step + (lane & 7) + ((lane >> 3) & 1) * 8;
  tiles::load_matrices_transposed(b, tile + piece_offset(row, column / 8 + (lane >> 4)));
}

}  // namespace sala::ampere
