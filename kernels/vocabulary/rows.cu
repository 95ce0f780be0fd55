// Losses over the vocabulary, one thread block per row of logits. The first pass over the row keeps
// running sums of the softmax below a running maximum (Milakov & Gimelshein 2018), for student and
// teacher together; they give the row's KL and cross-entropy. The second pass writes the gradient.
// Memory bound: logits are read twice (the second time from the end, where the L2 still holds them)
// and the gradient is written once. Everything is in powers of two: t = log2(e) / temperature * z.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/vocabulary/row_sums.cuh"
#include "kernels/vocabulary/rows_launch.h"

namespace sala {
namespace {

using namespace vocab;  // of row_sums.cuh

constexpr int kThreads = 1024;
constexpr int kLoads = 2;  // of one row in flight per thread
constexpr double kLn2 = 0.693147180559945309417;

template <bool kLast, int kWidth>
__device__ void load(const float* p, float (&v)[kWidth]) {
  if constexpr (kWidth == 4) {
    const float4* p4 = reinterpret_cast<const float4*>(p);
    const float4 x = kLast ? __ldcs(p4) : *p4;
    v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
  } else {
    v[0] = kLast ? __ldcs(p) : *p;
  }
}

// Written past the L2's keeping: the product that reads it comes after the whole chunk.
template <int kWidth>
__device__ void store(float* p, const float (&v)[kWidth]) {
  if constexpr (kWidth == 4) {
    __stcs(reinterpret_cast<float4*>(p), make_float4(v[0], v[1], v[2], v[3]));
  } else {
    __stcs(p, v[0]);
  }
}

template <int kWidth>
__device__ void store(__nv_bfloat16* p, const float (&v)[kWidth]) {
  if constexpr (kWidth == 4) {
    const __nv_bfloat162 low = __floats2bfloat162_rn(v[0], v[1]);
    const __nv_bfloat162 high = __floats2bfloat162_rn(v[2], v[3]);
    __stcs(reinterpret_cast<uint2*>(p), make_uint2(reinterpret_cast<const unsigned&>(low),
                                                   reinterpret_cast<const unsigned&>(high)));
  } else {
    *p = __float2bfloat16_rn(v[0]);
  }
}

// kLoads vectors of t and t' from element `first` on, those before V. The products are rounded by
// themselves: equal logits of student and teacher must give equal t.
template <bool kTeacher, bool kLast, int kWidth>
__device__ void load_scaled(const float* z, const float* teacher_z, int64_t first, int64_t V,
                            const VocabRowFactors& f, float (&t)[kLoads][kWidth],
                            float (&teacher_t)[kLoads][kWidth]) {
#pragma unroll
  for (int u = 0; u < kLoads; ++u) {
    const int64_t i = first + u * kThreads * kWidth;
    if (i >= V) break;
    load<kLast>(z + i, t[u]);
    if (kTeacher) load<kLast>(teacher_z + i, teacher_t[u]);
  }
#pragma unroll
  for (int u = 0; u < kLoads; ++u) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      t[u][j] = __fmul_rn(t[u][j], f.student);
      if (kTeacher) teacher_t[u][j] = __fmul_rn(teacher_t[u][j], f.teacher);
    }
  }
}

// What the KL and the cross-entropy count in a row's loss.
struct Shares {
  float kl, ce;
};

__device__ Shares shares_of(const VocabRowPointers& rows, const VocabRowFactors& f, int64_t row) {
  if (rows.ce_share == nullptr) return {f.kl_share, f.ce_share};
  const float ce = rows.ce_share[row];
  return {1 - ce, ce};
}

template <bool kTeacher, bool kHard>
__device__ void write_losses(const VocabRowPointers& rows, const VocabRowFactors& f,
                             const Shares& share, int64_t row, int64_t V, int64_t target,
                             const RowSums& s) {
  const double temperature = f.temperature;
  double kl = 0, ce = 0;
  if (kTeacher) {
    const double gap = static_cast<double>(s.gap) / s.teacher_sum;
    const double tops = static_cast<double>(s.top) - s.teacher_top;
    const double sums = log(static_cast<double>(s.sum) / s.teacher_sum);
    kl = temperature * temperature * (kLn2 * (gap + tops) + sums);
  }
  if (rows.targets != nullptr) {
    float t = __int_as_float(0x7fffffff);  // not a number: the step that sees it is not taken
    if (target >= 0 && target < V) t = __fmul_rn(rows.logits[row * V + target], f.student);
    const double below_top = static_cast<double>(s.top) - t;
    ce = kLn2 * temperature * below_top + log(static_cast<double>(kHard ? s.hard : s.sum));
  }
  rows.loss[row] = static_cast<float>(share.kl * kl + share.ce * ce);
  if (rows.kl != nullptr) rows.kl[row] = static_cast<float>(kl);
  if (rows.ce != nullptr) rows.ce[row] = static_cast<float>(ce);
}

template <typename Gradient, bool kTeacher, bool kHard, int kWidth>
__global__ void __launch_bounds__(kThreads, 1)
    vocab_rows_kernel(const VocabRowPointers rows, const VocabRowFactors f, int64_t V) {
  constexpr int64_t kTile = int64_t{kThreads} * kWidth * kLoads;
  const int64_t row = blockIdx.x;
  const int64_t target = rows.targets != nullptr ? rows.targets[row] : -1;
  const float* z = rows.logits + row * V;
  const float* teacher_z = kTeacher ? rows.teacher_logits + row * V : nullptr;
  const int64_t mine = threadIdx.x * kWidth;
  float t[kLoads][kWidth], teacher_t[kLoads][kWidth];

  RowSums sums;
  for (int64_t first = mine; first < V; first += kTile) {
    load_scaled<kTeacher, false>(z, teacher_z, first, V, f, t, teacher_t);
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      if (first + u * kThreads * kWidth >= V) break;
      add<kTeacher, kHard>(sums, t[u], teacher_t[u], f.temperature);
    }
  }
  sums = merge_block<kTeacher, kHard, kThreads>(sums, f.temperature);
  const Shares share = shares_of(rows, f, row);
  if (threadIdx.x == 0) write_losses<kTeacher, kHard>(rows, f, share, row, V, target, sums);
  if (rows.d_logits == nullptr) return;

  // d = student 2^(t - top) - teacher 2^(t' - top') + hard 2^(temperature (t - top)) - onehot
  const float factor = rows.weight[row] * f.logit_scale;
  const bool counts = factor != 0;
  const float kl_factor = kTeacher ? factor * share.kl * f.temperature : 0;
  const float onehot = factor * share.ce;
  const float student = (kHard ? kl_factor : kl_factor + onehot) / sums.sum;
  const float teacher = kTeacher ? kl_factor / sums.teacher_sum : 0;
  const float hard = kHard ? onehot / sums.hard : 0;
  Gradient* d = static_cast<Gradient*>(rows.d_logits) + row * V;
  for (int64_t first = mine + (V - 1) / kTile * kTile; first >= 0; first -= kTile) {
    if (counts) load_scaled<kTeacher, true>(z, teacher_z, first, V, f, t, teacher_t);
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int64_t i = first + u * kThreads * kWidth;
      if (i >= V) break;
      float g[kWidth] = {};
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        if (!counts) continue;
        g[j] = student * exp2_fast(t[u][j] - sums.top);
        if (kTeacher) g[j] -= teacher * exp2_fast(teacher_t[u][j] - sums.teacher_top);
        if (kHard) g[j] += hard * exp2_fast(f.temperature * (t[u][j] - sums.top));
        if (i + j == target) g[j] -= onehot;
      }
      store(d + i, g);
    }
  }
}

template <typename Gradient, bool kTeacher, bool kHard>
int launch(const VocabRowPointers& rows, const VocabRowFactors& factors, int64_t num_rows,
           int64_t V, cudaStream_t stream) {
  const auto address = reinterpret_cast<std::uintptr_t>(rows.logits) |
                       reinterpret_cast<std::uintptr_t>(rows.teacher_logits) |
                       reinterpret_cast<std::uintptr_t>(rows.d_logits);
  const auto blocks = static_cast<unsigned>(num_rows);
  if (V % 4 == 0 && address % 16 == 0) {
    vocab_rows_kernel<Gradient, kTeacher, kHard, 4>
        <<<blocks, kThreads, 0, stream>>>(rows, factors, V);
  } else {
    vocab_rows_kernel<Gradient, kTeacher, kHard, 1>
        <<<blocks, kThreads, 0, stream>>>(rows, factors, V);
  }
  return cudaGetLastError();
}

template <typename Gradient>
int launch_loss(const VocabRowPointers& rows, const VocabRowFactors& factors, int64_t num_rows,
                int64_t V, cudaStream_t stream) {
  if (rows.teacher_logits == nullptr) {
    return launch<Gradient, false, false>(rows, factors, num_rows, V, stream);
  }
  if (rows.targets != nullptr && factors.temperature != 1) {
    return launch<Gradient, true, true>(rows, factors, num_rows, V, stream);
  }
  return launch<Gradient, true, false>(rows, factors, num_rows, V, stream);
}

}  // namespace

int vocab_rows_cuda(const VocabRowPointers& rows, const VocabRowFactors& factors, int64_t num_rows,
                    int64_t V, CUstream_st* stream) {
  if (num_rows == 0) return cudaSuccess;
  if (rows.bf16_gradient) return launch_loss<__nv_bfloat16>(rows, factors, num_rows, V, stream);
  return launch_loss<float>(rows, factors, num_rows, V, stream);
}

}  // namespace sala
