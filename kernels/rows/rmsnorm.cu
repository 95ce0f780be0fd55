// rmsnorm and add_rmsnorm in one pass each way; rows in registers (rows.cuh), fp32 sums.
//
// Bytes moved per bf16 element, all that can be asked: forward 4 (x, u), with the sum 8 (x, y, h,
// u); backward 6 (dy, x, dx), with dh 8. The weight and its gradient stay in registers: a block
// writes one partial sum of C floats, and rows.cu adds the few hundred of them.

#include "kernels/rows/rmsnorm_launch.h"
#include "kernels/rows/rows.cuh"

namespace sala {
namespace {

template <typename T, int kChunks, bool kAligned>
__global__ void __launch_bounds__(kRowThreads, kBlocksForward<kChunks, kAligned>)
    norm_forward(const NormForward op, int team_size) {
  __shared__ float scratch[2][kRowWarps];
  const RowTeam team(team_size);
  Chunk<T> weight[kChunks];
  load_row<kAligned>(weight, op.weight, team, op.C);
  int half = 0;
  for (int64_t first = team.first_row(); first < op.rows; first += team.stride(), half ^= 1) {
    const int64_t row = first + team.row, start = row * op.C;
    const int end = row < op.rows ? op.C : 0;
    Chunk<T> x[kChunks], y[kChunks];
    load_row<kAligned>(x, static_cast<const T*>(op.x) + start, team, end);
    if (op.y != nullptr) {
      load_row<kAligned>(y, static_cast<const T*>(op.y) + start, team, end);
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        Values<T> sum = widen(x[i]);
        const Values<T> added = widen(y[i]);
#pragma unroll
        for (int j = 0; j < kWidth<T>; ++j) sum.v[j] += op.residual_scale * added.v[j];
        x[i] = round_to_type(sum);
        store_chunk<kAligned>(x[i], static_cast<T*>(op.h) + start, team.column<T>(i), end);
      }
    }
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const Values<T> in = widen(x[i]);
#pragma unroll
      for (int j = 0; j < kWidth<T>; ++j) squares += in.v[j] * in.v[j];
    }
    squares = team_sum(squares, team, scratch[half]);
    const float rstd = 1.0f / sqrtf(squares / static_cast<float>(op.C) + op.eps);
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      Values<T> n = widen(x[i]);
      const Values<T> w = widen(weight[i]);
#pragma unroll
      for (int j = 0; j < kWidth<T>; ++j) n.v[j] *= rstd;
      n = rounded(n);
#pragma unroll
      for (int j = 0; j < kWidth<T>; ++j) n.v[j] *= w.v[j];
      store_chunk<kAligned>(round_to_type(n), static_cast<T*>(op.u) + start, team.column<T>(i),
                            end);
    }
    if (team.thread == 0 && end > 0) op.rstd[row] = rstd;
  }
}

template <typename T, int kChunks, bool kAligned>
__global__ void __launch_bounds__(kRowThreads, kBlocksBackward<kChunks, kAligned>)
    norm_backward(const NormBackward op, int team_size) {
  __shared__ float scratch[2][kRowWarps];
  extern __shared__ float shared[];
  const RowTeam team(team_size);
  Chunk<T> weight[kChunks];
  Values<T> dweight[kChunks] = {};
  load_row<kAligned>(weight, op.weight, team, op.C);
  int half = 0;
  for (int64_t first = team.first_row(); first < op.rows; first += team.stride(), half ^= 1) {
    const int64_t row = first + team.row, start = row * op.C;
    const int end = row < op.rows ? op.C : 0;
    Chunk<T> x[kChunks], dy[kChunks], dh[kChunks] = {};
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      x[i] = load_chunk<kAligned>(static_cast<const T*>(op.x) + start, team.column<T>(i), end);
      dy[i] = load_chunk<kAligned>(static_cast<const T*>(op.dy) + start, team.column<T>(i), end);
    }
    if (op.dh != nullptr) {
      load_row<kAligned>(dh, static_cast<const T*>(op.dh) + start, team, end);
    }
    const float rstd = end > 0 ? op.rstd[row] : 0.0f;
    float sum = 0;  // of g * n, with n = x * rstd and g = dy * weight
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const Values<T> in = widen(x[i]), d = widen(dy[i]), w = widen(weight[i]);
#pragma unroll
      for (int j = 0; j < kWidth<T>; ++j) {
        const float product = d.v[j] * (in.v[j] * rstd);
        dweight[i].v[j] += product;
        sum += product * w.v[j];
      }
    }
    const float mean = team_sum(sum, team, scratch[half]) / static_cast<float>(op.C);
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const Values<T> in = widen(x[i]), d = widen(dy[i]), w = widen(weight[i]);
      Values<T> dx = widen(dh[i]);
#pragma unroll
      for (int j = 0; j < kWidth<T>; ++j) {
        dx.v[j] += rstd * (d.v[j] * w.v[j] - in.v[j] * rstd * mean);
      }
      store_chunk<kAligned>(round_to_type(dx), static_cast<T*>(op.dx) + start, team.column<T>(i),
                            end);
    }
  }
  store_partial(dweight, team, op.C, shared, op.partials);
}

}  // namespace

int norm_forward_cuda(const NormForward& op, CUstream_st* stream) {
  if (op.rows == 0) return cudaSuccess;
  const bool aligned = all_aligned({op.x, op.y, op.weight, op.h, op.u});
  return with_row_plan(
      op.type, op.C, aligned, [&](auto type, auto chunks, auto is_aligned, int team) {
        const auto kernel =
            norm_forward<decltype(type), decltype(chunks)::value, decltype(is_aligned)::value>;
        int blocks = 0;
        return launch_rows(kernel, op, team, kMaxBlocksPerSm, 0, stream, &blocks);
      });
}

int norm_backward_cuda(const NormBackward& op, CUstream_st* stream) {
  int blocks = 0;
  const bool aligned = all_aligned({op.dy, op.dh, op.x, op.weight, op.dx});
  const int status = with_row_plan(
      op.type, op.C, aligned, [&](auto type, auto chunks, auto is_aligned, int team) -> int {
        if (op.rows == 0) return cudaSuccess;
        const auto kernel =
            norm_backward<decltype(type), decltype(chunks)::value, decltype(is_aligned)::value>;
        const int shared_bytes = op.C * static_cast<int>(sizeof(float));
        return launch_rows(kernel, op, team, kMaxPartialsPerSm, shared_bytes, stream, &blocks);
      });
  if (status != cudaSuccess) return status;
  return add_partials_cuda(op.partials, blocks, op.C, op.dweight, stream);
}

}  // namespace sala
