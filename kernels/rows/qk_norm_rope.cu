// Per-head RMSNorm and rotation in one pass each way, fp32 maths.
//
// A group of 1 to 32 lanes holds one head: each lane a chunk of 16 bytes of the first half and the
// chunk of the second half that it turns with. A team of one or more groups walks over the heads of
// one token with the token's cos and sin and the weight in registers; blocks stay on the chip and
// stride over the tokens. Bytes moved per bf16 element, all that can be asked: forward 4 (x, y),
// backward 6 (dy, x, dx), and 4 * HS bytes of angles per token. The weight's gradient stays in
// registers; a block writes one partial sum of HS floats, and rows.cu adds them. Without a weight
// the norm is skipped; a missing rotation is the angle 0.

#include "kernels/rows/qk_norm_rope_launch.h"
#include "kernels/rows/rows.cuh"

namespace sala {
namespace {

constexpr int kMaxHead = static_cast<int>(kMaxHeadBytes) / 2;
constexpr int kForwardHeads = 4;  // heads that a group has under way at a time
constexpr int kBackwardHeads = 2;

struct HeadTeams {
  int lanes;   // of a group: the power of two that covers half a head
  int groups;  // of a team: heads of a token taken side by side
};

// Where this thread works.
struct HeadLane {
  int column;  // of its chunk, within half a head
  int group, token, tokens_per_block;

  __device__ HeadLane(const HeadTeams& teams, int width)
      : column(static_cast<int>(threadIdx.x) % teams.lanes * width),
        group(static_cast<int>(threadIdx.x) / teams.lanes % teams.groups),
        token(static_cast<int>(threadIdx.x) / (teams.lanes * teams.groups)),
        tokens_per_block(kRowThreads / (teams.lanes * teams.groups)) {}
};

// A chunk of each half of one head.
template <typename T>
struct Halves {
  Chunk<T> a, b;
};

template <bool kAligned, typename T>
__device__ Halves<T> load_halves(const T* head, int column, int half, int end) {
  return {load_chunk<kAligned>(head, column, end), load_chunk<kAligned>(head + half, column, end)};
}

template <bool kAligned, typename T>
__device__ void store_halves(const Values<T>& a, const Values<T>& b, T* head, int column, int half,
                             int end) {
  store_chunk<kAligned>(round_to_type(a), head, column, end);
  store_chunk<kAligned>(round_to_type(b), head + half, column, end);
}

// cos and sin of the columns of one lane.
template <typename T>
struct Angles {
  Values<T> cos, sin;
};

template <bool kAligned, typename T>
__device__ Angles<T> load_angles(const float* cos, const float* sin, int64_t start, int column,
                                 int end) {
  Angles<T> out;
#pragma unroll
  for (int i = 0; i < kWidth<T>; i += 4) {
    const Values<float> c = widen(load_chunk<kAligned>(cos + start, column + i, end));
    const Values<float> s = widen(load_chunk<kAligned>(sin + start, column + i, end));
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      out.cos.v[i + j] = c.v[j];
      out.sin.v[i + j] = s.v[j];
    }
  }
  return out;
}

template <typename T>
__device__ Angles<T> no_angles() {
  Angles<T> out;
#pragma unroll
  for (int j = 0; j < kWidth<T>; ++j) {
    out.cos.v[j] = 1.0f;
    out.sin.v[j] = 0.0f;
  }
  return out;
}

template <typename T>
__device__ void rotate(Values<T>& a, Values<T>& b, const Angles<T>& angles, float sign) {
#pragma unroll
  for (int j = 0; j < kWidth<T>; ++j) {
    const float first = a.v[j], second = b.v[j], sine = sign * angles.sin.v[j];
    a.v[j] = first * angles.cos.v[j] - second * sine;
    b.v[j] = second * angles.cos.v[j] + first * sine;
  }
}

// The sum over the lanes of a group, the same in all.
__device__ inline float group_sum(float value, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kRowThreads, kAligned ? 2 : 1)
    rope_forward(const RopeForward op, const HeadTeams teams) {
  const HeadLane lane(teams, kWidth<T>);
  const int half = op.HS / 2;
  const bool norm = op.weight != nullptr;
  Halves<T> weight{chunk_of<T>(1.0f), chunk_of<T>(1.0f)};
  if (norm) {
    weight = load_halves<kAligned>(static_cast<const T*>(op.weight), lane.column, half, half);
  }
  const int64_t stride = static_cast<int64_t>(gridDim.x) * lane.tokens_per_block;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * lane.tokens_per_block; first < op.T;
       first += stride) {
    const int64_t t = first + lane.token;
    const int there = t < op.T ? half : 0;
    const Angles<T> angles =
        op.cos != nullptr ? load_angles<kAligned, T>(op.cos, op.sin, t * half, lane.column, there)
                          : no_angles<T>();
    for (int n0 = lane.group; n0 - lane.group < op.N; n0 += kForwardHeads * teams.groups) {
      Halves<T> x[kForwardHeads];
#pragma unroll
      for (int i = 0; i < kForwardHeads; ++i) {
        const int n = n0 + i * teams.groups, end = n < op.N ? there : 0;
        x[i] = load_halves<kAligned>(static_cast<const T*>(op.x) + t * op.x_stride + n * op.HS,
                                     lane.column, half, end);
      }
#pragma unroll
      for (int i = 0; i < kForwardHeads; ++i) {
        const int n = n0 + i * teams.groups, end = n < op.N ? there : 0;
        Values<T> a = widen(x[i].a), b = widen(x[i].b);
        if (norm) {
          float squares = 0;
#pragma unroll
          for (int j = 0; j < kWidth<T>; ++j) squares += a.v[j] * a.v[j] + b.v[j] * b.v[j];
          squares = group_sum(squares, teams.lanes);
          const float rstd = 1.0f / sqrtf(squares / static_cast<float>(op.HS) + op.eps);
          a = normalised(a, rstd, weight.a);
          b = normalised(b, rstd, weight.b);
          if (lane.column == 0 && end > 0) op.rstd[t * op.N + n] = rstd;
        }
        rotate(a, b, angles, 1.0f);
        store_halves<kAligned>(a, b, static_cast<T*>(op.y) + (t * op.N + n) * op.HS, lane.column,
                               half, end);
      }
    }
  }
}

// Adds the sums of all groups of a block that hold the same columns, lanes by butterfly and warps
// in turn, and writes the block's partial sum.
template <typename T>
__device__ void store_head_partial(Values<T> a, Values<T> b, const HeadTeams& teams, int column,
                                   int half, float* partials) {
  __shared__ float sums[kRowWarps][kMaxHead];
  const int warp = threadIdx.x / 32;
#pragma unroll
  for (int j = 0; j < kWidth<T>; ++j) {
    for (int offset = teams.lanes; offset < 32; offset *= 2) {
      a.v[j] += __shfl_xor_sync(kAllLanes, a.v[j], offset);
      b.v[j] += __shfl_xor_sync(kAllLanes, b.v[j], offset);
    }
    if (static_cast<int>(threadIdx.x % 32) < teams.lanes && column + j < half) {
      sums[warp][column + j] = a.v[j];
      sums[warp][half + column + j] = b.v[j];
    }
  }
  __syncthreads();
  for (int c = threadIdx.x; c < 2 * half; c += kRowThreads) {
    float sum = 0;
    for (int i = 0; i < kRowWarps; ++i) sum += sums[i][c];
    partials[static_cast<int64_t>(blockIdx.x) * 2 * half + c] = sum;
  }
}

// The gradient of one head: x's chunks go in, dx's come out; `dn` is the gradient of the norm's
// result. Adds to the weight's gradient.
template <typename T>
__device__ void norm_backward(Values<T> (&x)[2], const Values<T> (&dn)[2], const Halves<T>& weight,
                              float rstd, int lanes, int HS, Values<T> (&dweight)[2]) {
  const Values<T> w[2] = {widen(weight.a), widen(weight.b)};
  float sum = 0;  // of g * n, with n = x * rstd and g = dn * weight
#pragma unroll
  for (int k = 0; k < 2; ++k) {
#pragma unroll
    for (int j = 0; j < kWidth<T>; ++j) {
      x[k].v[j] *= rstd;
      const float product = dn[k].v[j] * x[k].v[j];
      dweight[k].v[j] += product;
      sum += product * w[k].v[j];
    }
  }
  const float mean = group_sum(sum, lanes) / static_cast<float>(HS);
#pragma unroll
  for (int k = 0; k < 2; ++k) {
#pragma unroll
    for (int j = 0; j < kWidth<T>; ++j) {
      x[k].v[j] = rstd * (dn[k].v[j] * w[k].v[j] - x[k].v[j] * mean);
    }
  }
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kRowThreads, kAligned ? 2 : 1)
    rope_backward(const RopeBackward op, const HeadTeams teams) {
  const HeadLane lane(teams, kWidth<T>);
  const int half = op.HS / 2;
  const bool norm = op.weight != nullptr;
  Halves<T> weight{};
  if (norm) {
    weight = load_halves<kAligned>(static_cast<const T*>(op.weight), lane.column, half, half);
  }
  Values<T> dweight[2] = {};
  const int64_t stride = static_cast<int64_t>(gridDim.x) * lane.tokens_per_block;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * lane.tokens_per_block; first < op.T;
       first += stride) {
    const int64_t t = first + lane.token;
    const int there = t < op.T ? half : 0;
    const Angles<T> angles =
        op.cos != nullptr ? load_angles<kAligned, T>(op.cos, op.sin, t * half, lane.column, there)
                          : no_angles<T>();
    for (int n0 = lane.group; n0 - lane.group < op.N; n0 += kBackwardHeads * teams.groups) {
      Halves<T> dy[kBackwardHeads], x[kBackwardHeads] = {};
      float rstd[kBackwardHeads] = {};
#pragma unroll
      for (int i = 0; i < kBackwardHeads; ++i) {
        const int n = n0 + i * teams.groups, end = n < op.N ? there : 0;
        const int64_t head = t * op.N + n;
        dy[i] = load_halves<kAligned>(static_cast<const T*>(op.dy) + head * op.HS, lane.column,
                                      half, end);
        if (norm) {
          x[i] = load_halves<kAligned>(static_cast<const T*>(op.x) + head * op.HS, lane.column,
                                       half, end);
          if (end > 0) rstd[i] = op.rstd[head];
        }
      }
#pragma unroll
      for (int i = 0; i < kBackwardHeads; ++i) {
        const int n = n0 + i * teams.groups, end = n < op.N ? there : 0;
        Values<T> dn[2] = {widen(dy[i].a), widen(dy[i].b)};
        rotate(dn[0], dn[1], angles, -1.0f);
        Values<T> dx[2] = {dn[0], dn[1]};
        if (norm) {
          dn[0] = rounded(dn[0]);
          dn[1] = rounded(dn[1]);
          dx[0] = widen(x[i].a);
          dx[1] = widen(x[i].b);
          norm_backward(dx, dn, weight, rstd[i], teams.lanes, op.HS, dweight);
        }
        store_halves<kAligned>(dx[0], dx[1], static_cast<T*>(op.dx) + t * op.dx_stride + n * op.HS,
                               lane.column, half, end);
      }
    }
  }
  if (norm) store_head_partial(dweight[0], dweight[1], teams, lane.column, half, op.partials);
}

// The fewest idle groups, then as many groups as a warp has.
HeadTeams plan_heads(int N, int half, int width) {
  HeadTeams teams{1, 1};
  while (teams.lanes * width < half) teams.lanes *= 2;
  const auto taken = [N](int groups) { return (N + groups - 1) / groups * groups; };
  for (int groups = 2; groups * teams.lanes <= 32; groups *= 2) {
    if (taken(groups) <= taken(teams.groups)) teams.groups = groups;
  }
  return teams;
}

// Launches kernel<T, kAligned> on `op` with as many blocks as the chip holds; `num_blocks` receives
// their number. Returns the launch's cudaError_t.
template <typename Op>
int launch_heads(void (*kernel)(Op, HeadTeams), const Op& op, int width, int most_per_sm,
                 CUstream_st* stream, int* num_blocks) {
  const HeadTeams teams = plan_heads(op.N, op.HS / 2, width);
  const int64_t tokens = kRowThreads / (teams.lanes * teams.groups);
  *num_blocks = resident_blocks(kernel, (op.T + tokens - 1) / tokens, most_per_sm, 0);
  return launch(kernel, *num_blocks, 0, stream, op, teams);
}

}  // namespace

int qk_norm_rope_forward_cuda(const RopeForward& op, CUstream_st* stream) {
  if (op.T == 0 || op.N == 0 || op.HS == 0) return cudaSuccess;
  const int width = op.type == ElementType::kFloat ? kWidth<float> : kWidth<__nv_bfloat16>;
  const bool aligned = op.HS / 2 % width == 0 && rows_aligned(op.type, {op.x_stride}) &&
                       all_aligned({op.x, op.weight, op.cos, op.sin, op.y});
  void (*kernel)(RopeForward, HeadTeams) = nullptr;
  if (op.type == ElementType::kFloat) {
    kernel = aligned ? rope_forward<float, true> : rope_forward<float, false>;
  } else {
    kernel = aligned ? rope_forward<__nv_bfloat16, true> : rope_forward<__nv_bfloat16, false>;
  }
  int num_blocks = 0;
  return launch_heads(kernel, op, width, kMaxBlocksPerSm, stream, &num_blocks);
}

int qk_norm_rope_backward_cuda(const RopeBackward& op, CUstream_st* stream) {
  const int width = op.type == ElementType::kFloat ? kWidth<float> : kWidth<__nv_bfloat16>;
  const bool aligned = op.HS / 2 % width == 0 && rows_aligned(op.type, {op.dx_stride}) &&
                       all_aligned({op.dy, op.x, op.weight, op.cos, op.sin, op.dx});
  void (*kernel)(RopeBackward, HeadTeams) = nullptr;
  if (op.type == ElementType::kFloat) {
    kernel = aligned ? rope_backward<float, true> : rope_backward<float, false>;
  } else {
    kernel = aligned ? rope_backward<__nv_bfloat16, true> : rope_backward<__nv_bfloat16, false>;
  }
  int num_blocks = 0;
  if (op.T > 0 && op.N > 0 && op.HS > 0) {
    const int status = launch_heads(kernel, op, width, kMaxPartialsPerSm, stream, &num_blocks);
    if (status != cudaSuccess) return status;
  }
  if (op.weight == nullptr) return cudaSuccess;
  return add_partials_cuda(op.partials, num_blocks, op.HS, op.dweight, stream);
}

}  // namespace sala
