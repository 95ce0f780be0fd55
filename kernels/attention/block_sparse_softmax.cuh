// The running softmax of block-sparse attention's forward (block_sparse_forward.cu), in the
// fragments of a warp and block after block.
//
// Weights are p = exp2(c (s - top)) with c = scale log2(e). `top` cancels in o = sum(p v) / sum(p),
// so that it need not be the row's maximum, only near it: no block is searched for its maximum, nor
// are lanes asked for theirs. Weights are taken with the `top` at hand, and a thread's own sum of a
// row tells whether it would do. Where one is above 2^8, or a row is seen for the first time, the
// warp raises `top` to the maximum so far and takes the weights anew: with random keys at the first
// block of a tile and hardly ever again. The search and its shuffles took 1.4 ms of 28.4 at 128K
// tokens and 0.4 of 6.2 at 32K (32/2 heads of 128, one H200).
//
// Bounds: no weight that is kept exceeds 2^8. A row of n keys then sums to at most 2^8 n, and its
// |o| before the division to 2^8 n max|v|: with n < 2^31, fp32 (2^128) holds it for |v| < 2^89. A
// weight taken with too low a `top` may be infinite; it is not kept, since infinity is above 2^8.
// `top` is a product of the row itself, whose own weight was 1 when it was chosen: the sum is never
// below 1, and what underflows is below 2^-126 of it. bf16 has the exponents of fp32, so that p
// rounds by at most 2^-9 of itself, as it would below an exact maximum.
#pragma once

#include <cmath>

#include "kernels/attention/block_sparse_rows.cuh"

namespace sala {

struct RunningSoftmax {
  float top[2] = {-INFINITY, -INFINITY};  // of the products, not scaled; -inf: no key seen
  float sum[2] = {0, 0};                  // of this thread's columns

  // Turns products into weights. True where o must be multiplied by `factor` first.
  __device__ __forceinline__ bool weigh(float (&s)[32], float (&factor)[2], const TileRows& rows,
                                        const Listed& listed, const Lane& at, float c) {
    if (!hide_keys(s, rows, listed, at)) {
#pragma unroll
      for (int e = 0; e < 32; ++e) s[e] = 0;
      return false;
    }
    float p[32], here[2];  // s stays: the weights may have to be taken again
    take_weights(p, here, s, c);
    constexpr float kMost = 256;
    bool moves = here[0] > kMost || here[1] > kMost;
#pragma unroll
    for (int r = 0; r < 2; ++r) moves |= top[r] == -INFINITY && rows.limit(r, listed) >= 0;
    moves = __any_sync(~0u, moves);
    if (moves) {
      raise_top(factor, s, c);
      take_weights(p, here, s, c);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) sum[r] += here[r];
#pragma unroll
    for (int e = 0; e < 32; ++e) s[e] = p[e];
    return moves;
  }

 private:
  __device__ __forceinline__ void take_weights(float (&p)[32], float (&here)[2],
                                               const float (&s)[32], float c) const {
    // Where nothing is seen yet every s is -inf, and so is c s - 0.
    const float base[2] = {top[0] == -INFINITY ? 0.f : top[0] * c,
                           top[1] == -INFINITY ? 0.f : top[1] * c};
    here[0] = here[1] = 0;
#pragma unroll
    for (int e = 0; e < 32; ++e) {
      p[e] = exp2_fast(fmaf(s[e], c, -base[(e / 2) % 2]));
      here[(e / 2) % 2] += p[e];
    }
  }
  __device__ __forceinline__ void raise_top(float (&factor)[2], const float (&s)[32], float c) {
    float best[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int e = 0; e < 32; ++e) best[(e / 2) % 2] = fmaxf(best[(e / 2) % 2], s[e]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      best[r] = fmaxf(best[r], __shfl_xor_sync(~0u, best[r], 1));
      best[r] = fmaxf(best[r], __shfl_xor_sync(~0u, best[r], 2));
      const float old = top[r];
      top[r] = fmaxf(old, best[r]);
      factor[r] = old == top[r] ? 1.f : exp2_fast((old - top[r]) * c);
      sum[r] *= factor[r];
    }
  }
};

}  // namespace sala
