// swiglu each way. Memory bound: per bf16 element 6 bytes forward (gate, up, y), 10 backward (dy,
// gate, up, d_gate, d_up). A thread takes two chunks of 16 bytes of each tensor, a block's width
// apart, so that four or six loads are under way before the first is used. gate and up, and their
// gradients, may be the columns of a wider tensor (kRows).

#include "kernels/rows/rows.cuh"
#include "kernels/rows/swiglu_launch.h"

namespace sala {
namespace {

constexpr int kPerThread = 2;  // chunks

// Where this thread's chunk i begins, and how many of its elements exist. Counted in elements of a
// dense tensor; `in` and `out` of those whose rows may lie apart.
template <typename T, bool kRows>
struct Place {
  int64_t begin, in, out;
  int end;

  __device__ Place(int i, const Swiglu& op) {
    const int64_t chunk =
        (static_cast<int64_t>(blockIdx.x) * kPerThread + i) * kRowThreads + threadIdx.x;
    begin = in = out = chunk * kWidth<T>;
    const int64_t left = op.rows * op.C - begin;
    end =
        static_cast<int>(max(min(left, static_cast<int64_t>(kWidth<T>)), static_cast<int64_t>(0)));
    if constexpr (kRows) {
      // Fewer than 2^32 chunks: a tensor of more would have 64 GB.
      const auto per_row = static_cast<unsigned>(op.C / kWidth<T>);
      const unsigned row = static_cast<unsigned>(chunk) / per_row;
      const int64_t column = (static_cast<unsigned>(chunk) - row * per_row) * kWidth<T>;
      in = row * op.in_stride + column;
      out = row * op.out_stride + column;
    }
  }
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

template <typename T, bool kAligned, bool kRows>
__global__ void __launch_bounds__(kRowThreads) swiglu_forward(const Swiglu op) {
  Chunk<T> g[kPerThread], u[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const Place<T, kRows> place(i, op);
    g[i] = load_part<kAligned>(static_cast<const T*>(op.gate) + place.in, place.end);
    u[i] = load_part<kAligned>(static_cast<const T*>(op.up) + place.in, place.end);
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const Place<T, kRows> place(i, op);
    const Values<T> in = widen(g[i]);
    Values<T> out = widen(u[i]);
#pragma unroll
    for (int j = 0; j < kWidth<T>; ++j) out.v[j] *= in.v[j] * sigmoid(in.v[j]);
    store_part<kAligned>(round_to_type(out), static_cast<T*>(op.y) + place.begin, place.end);
  }
}

template <typename T, bool kAligned, bool kRows>
__global__ void __launch_bounds__(kRowThreads) swiglu_backward(const Swiglu op) {
  Chunk<T> d[kPerThread], g[kPerThread], u[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const Place<T, kRows> place(i, op);
    d[i] = load_part<kAligned>(static_cast<const T*>(op.dy) + place.begin, place.end);
    g[i] = load_part<kAligned>(static_cast<const T*>(op.gate) + place.in, place.end);
    u[i] = load_part<kAligned>(static_cast<const T*>(op.up) + place.in, place.end);
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const Place<T, kRows> place(i, op);
    const Values<T> d_out = widen(d[i]), in = widen(g[i]), other = widen(u[i]);
    Values<T> d_in, d_other;
#pragma unroll
    for (int j = 0; j < kWidth<T>; ++j) {
      const float s = sigmoid(in.v[j]);
      d_other.v[j] = d_out.v[j] * in.v[j] * s;
      d_in.v[j] = d_out.v[j] * other.v[j] * s * (1.0f + in.v[j] * (1.0f - s));
    }
    store_part<kAligned>(round_to_type(d_in), static_cast<T*>(op.d_gate) + place.out, place.end);
    store_part<kAligned>(round_to_type(d_other), static_cast<T*>(op.d_up) + place.out, place.end);
  }
}

bool dense(const Swiglu& op) { return op.in_stride == op.C && op.out_stride == op.C; }

bool aligned(const Swiglu& op) {
  return all_aligned({op.gate, op.up, op.y, op.dy, op.d_gate, op.d_up});
}

// Every block of the grid has its own elements: 2^31 blocks of 2K and more are enough.
template <typename T>
int num_blocks(const Swiglu& op) {
  constexpr int64_t kPerBlock = kRowThreads * kPerThread * kWidth<T>;
  return static_cast<int>((op.rows * op.C + kPerBlock - 1) / kPerBlock);
}

template <typename T>
int forward(const Swiglu& op, CUstream_st* stream) {
  const auto kernel = !dense(op)    ? swiglu_forward<T, true, true>
                      : aligned(op) ? swiglu_forward<T, true, false>
                                    : swiglu_forward<T, false, false>;
  return launch(kernel, num_blocks<T>(op), 0, stream, op);
}

template <typename T>
int backward(const Swiglu& op, CUstream_st* stream) {
  const auto kernel = !dense(op)    ? swiglu_backward<T, true, true>
                      : aligned(op) ? swiglu_backward<T, true, false>
                                    : swiglu_backward<T, false, false>;
  return launch(kernel, num_blocks<T>(op), 0, stream, op);
}

}  // namespace

bool swiglu_takes_rows(const Swiglu& op) {
  return aligned(op) && rows_aligned(op.type, {op.C, op.in_stride, op.out_stride});
}

int swiglu_forward_cuda(const Swiglu& op, CUstream_st* stream) {
  if (op.rows * op.C == 0) return cudaSuccess;
  return op.type == ElementType::kFloat ? forward<float>(op, stream)
                                        : forward<__nv_bfloat16>(op, stream);
}

int swiglu_backward_cuda(const Swiglu& op, CUstream_st* stream) {
  if (op.rows * op.C == 0) return cudaSuccess;
  return op.type == ElementType::kFloat ? backward<float>(op, stream)
                                        : backward<__nv_bfloat16>(op, stream);
}

}  // namespace sala
