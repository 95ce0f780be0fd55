// swiglu each way. Memory bound: per bf16 element 6 bytes forward (gate, up, y), 10 backward (dy,
// gate, up, d_gate, d_up). A thread takes two chunks of 16 bytes of each tensor, a block's width
// apart, so that four or six loads are under way before the first is used.

#include "kernels/rows/rows.cuh"
#include "kernels/rows/swiglu_launch.h"

namespace sala {
namespace {

constexpr int kPerThread = 2;  // chunks

// Where this thread's chunk i begins, and how many of its elements exist.
template <typename T>
struct Place {
  int64_t begin;
  int end;

  __device__ Place(int i, int64_t num_elements)
      : begin(((static_cast<int64_t>(blockIdx.x) * kPerThread + i) * kRowThreads + threadIdx.x) *
              kWidth<T>),
        end(static_cast<int>(max(min(num_elements - begin, static_cast<int64_t>(kWidth<T>)),
                                 static_cast<int64_t>(0)))) {}
};

// The last chunk of a tensor may be a part of one.
template <bool kAligned, typename T>
__device__ Chunk<T> load_part(const T* x, int end) {
  return kAligned && end == kWidth<T> ? load_chunk<true>(x, 0, end) : load_chunk<false>(x, 0, end);
}

template <bool kAligned, typename T>
__device__ void store_part(const Chunk<T>& chunk, T* x, int end) {
  if (kAligned && end == kWidth<T>) {
    store_chunk<true>(chunk, x, 0, end);
  } else {
    store_chunk<false>(chunk, x, 0, end);
  }
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kRowThreads)
    swiglu_forward(const T* gate, const T* up, T* y, int64_t num_elements) {
  Chunk<T> g[kPerThread], u[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const Place<T> place(i, num_elements);
    g[i] = load_part<kAligned>(gate + place.begin, place.end);
    u[i] = load_part<kAligned>(up + place.begin, place.end);
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const Place<T> place(i, num_elements);
    const Values<T> in = widen(g[i]);
    Values<T> out = widen(u[i]);
#pragma unroll
    for (int j = 0; j < kWidth<T>; ++j) out.v[j] *= in.v[j] * sigmoid(in.v[j]);
    store_part<kAligned>(round_to_type(out), y + place.begin, place.end);
  }
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kRowThreads)
    swiglu_backward(const T* dy, const T* gate, const T* up, T* d_gate, T* d_up,
                    int64_t num_elements) {
  Chunk<T> d[kPerThread], g[kPerThread], u[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const Place<T> place(i, num_elements);
    d[i] = load_part<kAligned>(dy + place.begin, place.end);
    g[i] = load_part<kAligned>(gate + place.begin, place.end);
    u[i] = load_part<kAligned>(up + place.begin, place.end);
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const Place<T> place(i, num_elements);
    const Values<T> d_out = widen(d[i]), in = widen(g[i]), other = widen(u[i]);
    Values<T> d_in, d_other;
#pragma unroll
    for (int j = 0; j < kWidth<T>; ++j) {
      const float s = sigmoid(in.v[j]);
      d_other.v[j] = d_out.v[j] * in.v[j] * s;
      d_in.v[j] = d_out.v[j] * other.v[j] * s * (1.0f + in.v[j] * (1.0f - s));
    }
    store_part<kAligned>(round_to_type(d_in), d_gate + place.begin, place.end);
    store_part<kAligned>(round_to_type(d_other), d_up + place.begin, place.end);
  }
}

// Every block of the grid has its own elements: 2^31 blocks of 2K and more are enough.
template <typename T>
int num_blocks(int64_t num_elements) {
  constexpr int64_t kPerBlock = kRowThreads * kPerThread * kWidth<T>;
  return static_cast<int>((num_elements + kPerBlock - 1) / kPerBlock);
}

template <typename T>
int forward(const void* gate, const void* up, void* y, int64_t num_elements, CUstream_st* stream) {
  const auto kernel =
      all_aligned({gate, up, y}) ? swiglu_forward<T, true> : swiglu_forward<T, false>;
  return launch(kernel, num_blocks<T>(num_elements), 0, stream, static_cast<const T*>(gate),
                static_cast<const T*>(up), static_cast<T*>(y), num_elements);
}

template <typename T>
int backward(const void* dy, const void* gate, const void* up, void* d_gate, void* d_up,
             int64_t num_elements, CUstream_st* stream) {
  const auto kernel = all_aligned({dy, gate, up, d_gate, d_up}) ? swiglu_backward<T, true>
                                                                : swiglu_backward<T, false>;
  return launch(kernel, num_blocks<T>(num_elements), 0, stream, static_cast<const T*>(dy),
                static_cast<const T*>(gate), static_cast<const T*>(up), static_cast<T*>(d_gate),
                static_cast<T*>(d_up), num_elements);
}

}  // namespace

int swiglu_forward_cuda(ElementType type, const void* gate, const void* up, void* y,
                        int64_t num_elements, CUstream_st* stream) {
  if (num_elements == 0) return cudaSuccess;
  return type == ElementType::kFloat ? forward<float>(gate, up, y, num_elements, stream)
                                     : forward<__nv_bfloat16>(gate, up, y, num_elements, stream);
}

int swiglu_backward_cuda(ElementType type, const void* dy, const void* gate, const void* up,
                         void* d_gate, void* d_up, int64_t num_elements, CUstream_st* stream) {
  if (num_elements == 0) return cudaSuccess;
  return type == ElementType::kFloat
             ? backward<float>(dy, gate, up, d_gate, d_up, num_elements, stream)
             : backward<__nv_bfloat16>(dy, gate, up, d_gate, d_up, num_elements, stream);
}

}  // namespace sala
