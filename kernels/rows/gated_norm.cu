// The gate of a mixer's output in one pass each way; rows in registers (rows.cuh), fp32 maths.
//
// Bytes moved per bf16 element, all that can be asked: forward 6 (o, z, y), backward 10 (dy, o, z,
// d_o, dz). Where there is no weight the norm is the identity: a weight of ones, rstd = 1, no sum.

#include "kernels/rows/gated_norm_launch.h"
#include "kernels/rows/rows.cuh"

namespace sala {
namespace {

template <typename T, int kChunks, bool kAligned>
__global__ void __launch_bounds__(kRowThreads, kBlocksForward<kChunks, kAligned>)
    gate_forward(const GateForward op, int team_size) {
  __shared__ float scratch[2][kRowWarps];
  const RowTeam team(team_size);
  const bool norm = op.weight != nullptr;
  Chunk<T> weight[kChunks];
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    weight[i] =
        norm ? load_chunk<kAligned>(static_cast<const T*>(op.weight), team.column<T>(i), op.C)
             : chunk_of<T>(1.0f);
  }
  int half = 0;
  for (int64_t first = team.first_row(); first < op.rows; first += team.stride(), half ^= 1) {
    const int64_t row = first + team.row, start = row * op.C;
    const int end = row < op.rows ? op.C : 0;
    Chunk<T> o[kChunks], z[kChunks];
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      o[i] = load_chunk<kAligned>(static_cast<const T*>(op.o) + start, team.column<T>(i), end);
      z[i] = load_chunk<kAligned>(static_cast<const T*>(op.z) + row * op.z_stride,
                                  team.column<T>(i), end);
    }
    float rstd = 1.0f;
    if (norm) {
      float squares = 0;
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        const Values<T> in = widen(o[i]);
#pragma unroll
        for (int j = 0; j < kWidth<T>; ++j) squares += in.v[j] * in.v[j];
      }
      squares = team_sum(squares, team, scratch[half]);
      rstd = 1.0f / sqrtf(squares / static_cast<float>(op.C) + op.eps);
    }
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const Values<T> gate = widen(z[i]);
      Values<T> y = normalised(widen(o[i]), rstd, weight[i]);
#pragma unroll
      for (int j = 0; j < kWidth<T>; ++j) y.v[j] *= sigmoid(gate.v[j]);
      store_chunk<kAligned>(round_to_type(y), static_cast<T*>(op.y) + start, team.column<T>(i),
                            end);
    }
    if (norm && team.thread == 0 && end > 0) op.rstd[row] = rstd;
  }
}

template <typename T, int kChunks, bool kAligned>
__global__ void __launch_bounds__(kRowThreads, kBlocksBackward<kChunks, kAligned>)
    gate_backward(const GateBackward op, int team_size) {
  __shared__ float scratch[2][kRowWarps];
  extern __shared__ float shared[];
  const RowTeam team(team_size);
  const bool norm = op.weight != nullptr;
  Chunk<T> weight[kChunks];
  Values<T> dweight[kChunks] = {};
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    weight[i] =
        norm ? load_chunk<kAligned>(static_cast<const T*>(op.weight), team.column<T>(i), op.C)
             : chunk_of<T>(1.0f);
  }
  int half = 0;
  for (int64_t first = team.first_row(); first < op.rows; first += team.stride(), half ^= 1) {
    const int64_t row = first + team.row, start = row * op.C;
    const int end = row < op.rows ? op.C : 0;
    Chunk<T> dy[kChunks], o[kChunks], z[kChunks];
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      dy[i] = load_chunk<kAligned>(static_cast<const T*>(op.dy) + start, team.column<T>(i), end);
      o[i] = load_chunk<kAligned>(static_cast<const T*>(op.o) + start, team.column<T>(i), end);
      z[i] = load_chunk<kAligned>(static_cast<const T*>(op.z) + row * op.z_stride,
                                  team.column<T>(i), end);
    }
    const float rstd = norm && end > 0 ? op.rstd[row] : 1.0f;
    Values<T> g[kChunks];  // the gradient of the normalised value n
    float sum = 0;         // of g * n
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const Values<T> d = widen(dy[i]), in = widen(o[i]), w = widen(weight[i]);
      Values<T> dz = widen(z[i]);
#pragma unroll
      for (int j = 0; j < kWidth<T>; ++j) {
        const float gate = sigmoid(dz.v[j]), n = in.v[j] * rstd, d_gated = d.v[j] * gate;
        dweight[i].v[j] += d_gated * n;
        g[i].v[j] = d_gated * w.v[j];
        const float product = g[i].v[j] * n;
        sum += product;
        dz.v[j] = product * (1.0f - gate);
      }
      store_chunk<kAligned>(round_to_type(dz), static_cast<T*>(op.dz) + row * op.dz_stride,
                            team.column<T>(i), end);
    }
    const float mean = norm ? team_sum(sum, team, scratch[half]) / static_cast<float>(op.C) : 0.0f;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const Values<T> in = widen(o[i]);
      Values<T> d_o;
#pragma unroll
      for (int j = 0; j < kWidth<T>; ++j) {
        d_o.v[j] = rstd * (g[i].v[j] - in.v[j] * rstd * mean);
      }
      store_chunk<kAligned>(round_to_type(d_o), static_cast<T*>(op.d_o) + start, team.column<T>(i),
                            end);
    }
  }
  if (norm) store_partial(dweight, team, op.C, shared, op.partials);
}

}  // namespace

int gate_forward_cuda(const GateForward& op, CUstream_st* stream) {
  if (op.rows == 0) return cudaSuccess;
  const bool aligned =
      all_aligned({op.o, op.z, op.weight, op.y}) && rows_aligned(op.type, {op.z_stride});
  return with_row_plan(
      op.type, op.C, aligned, [&](auto type, auto chunks, auto is_aligned, int team) {
        const auto kernel =
            gate_forward<decltype(type), decltype(chunks)::value, decltype(is_aligned)::value>;
        int blocks = 0;
        return launch_rows(kernel, op, team, kMaxBlocksPerSm, 0, stream, &blocks);
      });
}

int gate_backward_cuda(const GateBackward& op, CUstream_st* stream) {
  int blocks = 0;
  const bool aligned = all_aligned({op.dy, op.o, op.z, op.weight, op.d_o, op.dz}) &&
                       rows_aligned(op.type, {op.z_stride, op.dz_stride});
  const int status = with_row_plan(
      op.type, op.C, aligned, [&](auto type, auto chunks, auto is_aligned, int team) -> int {
        if (op.rows == 0) return cudaSuccess;
        const auto kernel =
            gate_backward<decltype(type), decltype(chunks)::value, decltype(is_aligned)::value>;
        const int shared_bytes = op.C * static_cast<int>(sizeof(float));
        return launch_rows(kernel, op, team, kMaxPartialsPerSm, shared_bytes, stream, &blocks);
      });
  if (status != cudaSuccess || op.weight == nullptr) return status;
  return add_partials_cuda(op.partials, blocks, op.C, op.dweight, stream);
}

}  // namespace sala
