// What the tensor doors of our CUDA kernels share: which tensors the element-wise kernels take (the
// rest, fp64 and rows too long for registers, goes through compositions of LibTorch ops), and how
// launchers are called.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "kernels/rows/launch.h"

#ifdef SALA_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace sala {

inline bool kernels_take(const at::Tensor& x) {
#ifdef SALA_CUDA
  return x.is_cuda() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
#else
  static_cast<void>(x);
  return false;
#endif
}

inline bool row_kernels_take(const at::Tensor& x, int64_t C) {
  return kernels_take(x) && C > 0 && C * x.element_size() <= kMaxRowBytes;
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
