// The three mixers. Each takes the normed input x (T, C) and returns the mixer's output (T, C),
// o_proj included. Layer maths: MiniCPM-SALA's released modelling code (arXiv:2602.11761).
#pragma once

#include <ATen/ATen.h>

#include "model/unit.h"

namespace sala {

struct MixerCall {
  const ModelConfig& config;
  const Weights& weights;
  const Env& env;
  int64_t layer;
  Saved* saved;  // may be nullptr
};

// Causal softmax attention with RoPE (and per-head QK-norm where the source has it).
at::Tensor full_attention(const MixerCall& call, const at::Tensor& x);
// Causal softmax attention without positions (HyPE), output gate; InfLLM-V2 block selection for
// documents of dense_len tokens and more where env.sparse is set.
at::Tensor sparse_attention(const MixerCall& call, const at::Tensor& x);
// Lightning attention: QK-norm, RoPE, decayed linear attention, output norm over all heads, gate.
at::Tensor lightning_mixer(const MixerCall& call, const at::Tensor& x);

at::Tensor mixer_forward(Mixer mixer, const MixerCall& call, const at::Tensor& x);

// dense_attention (autograd.h), or its faster forward in a pass that no backward follows.
at::Tensor attend_dense(const MixerCall& call, const at::Tensor& q, const at::Tensor& k,
                        const at::Tensor& v, const Documents& q_docs, const Documents& k_docs,
                        double scale);

// Appends new keys or values (T, NKV, HS) to the kept ones; returns a view of all so far.
at::Tensor append_to_cache(at::Tensor& cache, const at::Tensor& x, int64_t num_before);

}  // namespace sala
