// Tiles in shared memory and the fragments of matrix products, as every GPU since Ampere has them.
//
// A tile is 64 columns of bf16 wide: rows of 128 bytes, whose eight 16-byte pieces are permuted by
// the row number (128-byte swizzle: piece p of row r lies at p ^ (r & 7)), so that neither rows nor
// columns meet in one bank. It starts at a multiple of 1024 bytes. A matrix of 128 columns is two
// tiles.
//
// Fragments: in every accumulator of a warpgroup (four warps, 64 rows), warp w holds rows
// 16 w .. 16 w + 15; its lane l holds, per 8 columns, row l / 4 and row l / 4 + 8 at columns
// 2 (l % 4) and the next one.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace sala::tiles {

constexpr int kRowBytes = 128;  // 64 bf16
constexpr int kWarpgroup = 128;

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
// Byte offset of a 16-byte piece.
__device__ __forceinline__ uint32_t piece_offset(int row, int piece) {
  return static_cast<uint32_t>(row * kRowBytes + ((piece ^ (row & 7)) << 4));
}
// A barrier among `threads` threads of the block; `id` 0 .. 15.
__device__ __forceinline__ void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

}  // namespace sala::tiles
