// What the tensor doors of our CUDA kernels share: which tensors the element-wise kernels take (the
// rest, fp64 and rows too long for registers, goes through compositions of LibTorch ops), and how
// launchers are called.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "kernels/paths.h"
#include "kernels/rows/launch.h"

#ifdef SALA_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace sala {

// Whether the kernels of `op` run for a tensor like x; on a GPU what it lacks is told (paths.h).
inline bool kernels_take(const char* op, const at::Tensor& x) {
#ifdef SALA_CUDA
  if (!x.is_cuda()) return false;
  const bool taken = x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16;
  return kernels_run(op, taken ? std::string() : c10::str("bf16 or fp32, got ", x.scalar_type()));
#else
  static_cast<void>(op);
  static_cast<void>(x);
  return false;
#endif
}

// Likewise, for rows of C elements that the kernels hold in registers.
inline bool row_kernels_take(const char* op, const at::Tensor& x, int64_t C,
                             int64_t most_bytes = kMaxRowBytes) {
  if (C < 1 || !kernels_take(op, x)) return false;
  const int64_t bytes = C * static_cast<int64_t>(x.element_size());
  return kernels_run(op, bytes <= most_bytes
                             ? std::string()
                             : c10::str("rows of at most ", most_bytes, " bytes, got ", bytes));
}

#ifdef SALA_CUDA
inline ElementType element_type(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat ? ElementType::kFloat : ElementType::kBFloat16;
}

inline const void* data_or_null(const at::Tensor& x) {
  return x.defined() ? x.const_data_ptr() : nullptr;
}

// Room for the partial sums of a weight gradient, on the current device.
inline at::Tensor empty_partials(const at::Tensor& x, int64_t C) {
  return at::empty({max_partials(), C}, x.options().dtype(at::kFloat));
}

inline CUstream_st* current_stream() { return c10::cuda::getCurrentCUDAStream(); }

// Of tensors that kernels read in pieces of 16 bytes.
inline at::Tensor aligned(const at::Tensor& x) {
  if (!x.defined() || reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0) return x;
  return x.clone();
}

inline void check_launch(int status) { C10_CUDA_CHECK(static_cast<cudaError_t>(status)); }
#endif

}  // namespace sala
