// From a full-attention model to the hybrid: which configuration it has and what each new mixer
// starts from (HALO, arXiv:2601.22156, with head-wise expansion; neutral gates). Nothing here is
// random.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "model/config.h"
#include "model/weights/layout.h"

namespace sala {

// The hybrid of `source` with sparse attention on the layers `kept` (ascending) and lightning
// elsewhere. Lightning layers are multi-head (one KV head per query head) with the source's rotary
// base and no scaling; biases on o_proj and the gates exist, as zeros, where q, k, v have them (the
// format has one flag).
ModelConfig hybrid_config(const ModelConfig& source, const std::vector<int64_t>& kept,
                          const SparseConfig& sparse, bool keep_qk_norm);

// Fills `mixer` (layout of mixer_layout(hybrid, l, kLightning)) from the source layer's softmax
// mixer: q, o copied; k, v expanded head-wise (query head i <- KV head i / G); q/k norm copied,
// else 1; gate logits 0 (gate 1/2); o_norm = `attention_rms` / (1/2), the per-channel RMS (NH * HS)
// of the source's attention output, so that the mixer's output starts at the source's scale.
void start_lightning_mixer(const ModelConfig& hybrid, const Weights& source,
                           const at::Tensor& attention_rms, Weights& mixer);

// Fills `mixer` (kSparse): projections copied, o_gate 0 with o_proj doubled: output unchanged by
// the gate.
void start_sparse_mixer(const ModelConfig& hybrid, const Weights& source, Weights& mixer);

// Copies every tensor of `from` that `to` has, by the name's last part.
void copy_weights(const Weights& from, Weights& to);

}  // namespace sala
