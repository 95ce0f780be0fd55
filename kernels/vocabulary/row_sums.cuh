// What the first pass over a row of logits keeps (rows.cu), and how parts of a row add up:
// thread by thread, then as a tree, so that sums are the same bits in every run.
#pragma once

#include <cfloat>

#include "kernels/gpu/exp2.cuh"

namespace sala::vocab {

// Sums over a part of the row, relative to the largest t of that part.
struct RowSums {
  float top = -FLT_MAX, sum = 0;                  // student: max t, sum 2^(t - top)
  float hard = 0;                                 // student at temperature 1
  float teacher_top = -FLT_MAX, teacher_sum = 0;  // the same of the teacher's t'
  float gap = 0;                                  // sum 2^(t' - teacher_top) (t' - t)
};

// kTeacher: there is one. kHard: the cross-entropy is at another temperature than the KL.
template <bool kTeacher, bool kHard, int kWidth>
__device__ void add(RowSums& s, const float (&t)[kWidth], const float (&teacher_t)[kWidth],
                    float temperature) {
  float top = s.top;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) top = fmaxf(top, t[j]);
  s.sum *= exp2_fast(s.top - top);
  if (kHard) s.hard *= exp2_fast(temperature * (s.top - top));
  s.top = top;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    s.sum += exp2_fast(t[j] - top);
    if (kHard) s.hard += exp2_fast(temperature * (t[j] - top));
  }
  if (!kTeacher) return;
  top = s.teacher_top;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) top = fmaxf(top, teacher_t[j]);
  const float shrink = exp2_fast(s.teacher_top - top);
  s.teacher_sum *= shrink;
  s.gap *= shrink;
  s.teacher_top = top;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    const float e = exp2_fast(teacher_t[j] - top);
    s.teacher_sum += e;
    s.gap += e * (teacher_t[j] - t[j]);
  }
}

template <bool kTeacher, bool kHard>
__device__ void merge(RowSums& s, const RowSums& o, float temperature) {
  const float top = fmaxf(s.top, o.top);
  s.sum = s.sum * exp2_fast(s.top - top) + o.sum * exp2_fast(o.top - top);
  if (kHard) {
    s.hard = s.hard * exp2_fast(temperature * (s.top - top)) +
             o.hard * exp2_fast(temperature * (o.top - top));
  }
  s.top = top;
  if (!kTeacher) return;
  const float teacher_top = fmaxf(s.teacher_top, o.teacher_top);
  const float mine = exp2_fast(s.teacher_top - teacher_top);
  const float other = exp2_fast(o.teacher_top - teacher_top);
  s.teacher_sum = s.teacher_sum * mine + o.teacher_sum * other;
  s.gap = s.gap * mine + o.gap * other;
  s.teacher_top = teacher_top;
}

template <bool kTeacher, bool kHard>
__device__ RowSums from_lane(const RowSums& s, int lane) {
  const auto get = [&](float x) { return __shfl_sync(0xffffffffu, x, lane); };
  RowSums o;
  o.top = get(s.top);
  o.sum = get(s.sum);
  if (kHard) o.hard = get(s.hard);
  if (kTeacher) {
    o.teacher_top = get(s.teacher_top);
    o.teacher_sum = get(s.teacher_sum);
    o.gap = get(s.gap);
  }
  return o;
}

// The sums of lanes 0 .. kLanes - 1, added as a tree; right in lane 0.
template <bool kTeacher, bool kHard, int kLanes>
__device__ void merge_lanes(RowSums& s, float temperature) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    const RowSums other = from_lane<kTeacher, kHard>(s, (lane + step) % 32);
    merge<kTeacher, kHard>(s, other, temperature);
  }
}

// Sums of the whole row, the same bits in every thread.
template <bool kTeacher, bool kHard, int kThreads>
__device__ RowSums merge_block(RowSums s, float temperature) {
  constexpr int kWarps = kThreads / 32;
  __shared__ RowSums of_warp[kWarps];
  merge_lanes<kTeacher, kHard, 32>(s, temperature);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = s;
  __syncthreads();
  s = of_warp[threadIdx.x % kWarps];
  merge_lanes<kTeacher, kHard, kWarps>(s, temperature);
  return from_lane<kTeacher, kHard>(s, 0);
}

}  // namespace sala::vocab
