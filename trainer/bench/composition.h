// The lightning mixer between its GEMMs, twice: as our ops do it, and composed of plain LibTorch
// calls as one would write it without kernels of one's own. sala-bench shows them side by side; a
// test shows that they compute the same.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace sala {

struct MixerInputs {
  at::Tensor q, k, v;             // (T, NH, HS): straight from their projections
  at::Tensor z;                   // (T, NH * HS): the output gate's
  at::Tensor q_weight, k_weight;  // (HS): norms per head
  at::Tensor o_weight;            // (NH * HS): norm of the output
  at::Tensor cos, sin;            // (T, HS/2) fp32
  at::Tensor slopes;              // (NH) fp64 on the CPU
  int64_t documents = 1;          // of equal length
  double scale = 1, eps = 1e-6;
};

// RMSNorm and RoPE of q and k, lightning attention, output norm, sigmoid gate: (T, NH * HS),
// differentiable by autograd. Attention in chunks of 128 tokens with batched GEMMs; states in fp32,
// handed from chunk to chunk in a loop.
at::Tensor composed_mixer(const MixerInputs& in);

}  // namespace sala
