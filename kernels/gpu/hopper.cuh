// Hopper's own instructions (PTX ISA 8.0 and later, sm_90a), as thin inline functions: mbarriers,
// the tensor copy engine, warpgroup matrix products (wgmma), matrix loads and stores between
// registers and shared memory. Nothing here knows what is computed.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/gpu/shared_tiles.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SALA_SM90A 1
#endif

namespace sala::hopper {

using tiles::shared_address;

// ---------------------------------------------------------------- barriers

__device__ __forceinline__ void barrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals));
}
__device__ __forceinline__ void barrier_init_done() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, uint32_t num_bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(num_bytes)
      : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
// Arrives once this thread's 8- and 16-byte copies (ampere.cuh) so far have landed.
__device__ __forceinline__ void copies_arrive(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
// Waits for the completion of the phase with the given parity.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}
// Orders ordinary writes to shared memory before what the tensor cores and the copy engine read.
__device__ __forceinline__ void fence_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Moves registers between the warpgroups of a block: the one that only feeds the copy engine gives
// back what the others take. The kernel needs __launch_bounds__ with a number of blocks.
template <int kRegisters>
__device__ __forceinline__ void keep_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---------------------------------------------------------------- copy engine

// Starts the copy of one box of a rank-3 tensor map to shared memory; `barrier` counts its bytes.
__device__ __forceinline__ void copy_box(void* to, const CUtensorMap* map, int x, int y, int z,
                                         uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// Starts the copy of `num_bytes` contiguous bytes (all multiples of 16); `barrier` counts them.
__device__ __forceinline__ void copy_bytes(void* to, const void* from, uint32_t num_bytes,
                                           uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
      "l"(from), "r"(num_bytes), "r"(shared_address(barrier))
      : "memory");
}

// ---------------------------------------------------------------- warpgroup matrix products

// Operand in shared memory whose rows run along the reduction: element (row, k) at row, column k.
// Blocks of 8 rows lie 1024 bytes apart.
__device__ __forceinline__ uint64_t rows_descriptor(uint32_t address) {
  return static_cast<uint64_t>((address & 0x3FFFF) >> 4) | (1ull << 16) | (uint64_t{64} << 32) |
         (1ull << 62);
}
// Operand stored transposed: element (k, column) at row k; 64 columns per tile, the next 64 columns
// `tile_stride` bytes further.
__device__ __forceinline__ uint64_t columns_descriptor(uint32_t address, uint32_t tile_stride) {
  return static_cast<uint64_t>((address & 0x3FFFF) >> 4) |
         (static_cast<uint64_t>(tile_stride >> 4) << 16) | (uint64_t{64} << 32) | (1ull << 62);
}

// The descriptor of what lies `bytes` (a multiple of 16) behind: one addition of 32 bits, where a
// descriptor made from an address takes a shift, a mask and an or of 64. Addresses are below 2^18:
// nothing is carried out of their 14 bits, and the upper word stays what it is.
__device__ __forceinline__ uint64_t behind(uint64_t descriptor, uint32_t bytes) {
  return (descriptor & 0xFFFFFFFF00000000) | (static_cast<uint32_t>(descriptor) + (bytes >> 4));
}

__device__ __forceinline__ void products_begin() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void products_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most `kPending` committed groups are unfinished.
template <int kPending>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving reads of accumulators above the wait.
template <int kCount>
__device__ __forceinline__ void pin(float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(x[i])::"memory");
}

#define SALA_8(d, i)                                                                          \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define SALA_32(d, i) SALA_8(d, i), SALA_8(d, i + 8), SALA_8(d, i + 16), SALA_8(d, i + 24)
#define SALA_NAMES_32                                                                     \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
  "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SALA_NAMES_64                                                                       \
  SALA_NAMES_32                                                                             \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, " \
  "%49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// d (64 x N) = a (64 x 16) b (16 x N) + (add ? d : 0), bf16 in, fp32 out. `a` is a rows_descriptor
// or four fragment registers; kTransposed: `b` is a columns_descriptor instead of a
// rows_descriptor.
template <int N>
struct Product;

template <>
struct Product<64> {
  template <bool kTransposed>
  __device__ static __forceinline__ void run(float (&d)[32], uint64_t a, uint64_t b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" SALA_NAMES_32
        "}, %32, %33, p, 1, 1, 0, %35;\n}\n"
        : SALA_32(d, 0)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(int{kTransposed}));
  }
  template <bool kTransposed>
  __device__ static __forceinline__ void run(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                             bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" SALA_NAMES_32
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n"
        : SALA_32(d, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),
          "n"(int{kTransposed}));
  }
};

template <>
struct Product<128> {
  template <bool kTransposed>
  __device__ static __forceinline__ void run(float (&d)[64], uint64_t a, uint64_t b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" SALA_NAMES_64
        "}, %64, %65, p, 1, 1, 0, %67;\n}\n"
        : SALA_32(d, 0), SALA_32(d, 32)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(int{kTransposed}));
  }
  template <bool kTransposed>
  __device__ static __forceinline__ void run(float (&d)[64], const uint32_t (&a)[4], uint64_t b,
                                             bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" SALA_NAMES_64
        "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}\n"
        : SALA_32(d, 0), SALA_32(d, 32)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),
          "n"(int{kTransposed}));
  }
};

#undef SALA_8
#undef SALA_32
#undef SALA_NAMES_32
#undef SALA_NAMES_64

}  // namespace sala::hopper
