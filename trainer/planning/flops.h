// Arithmetic of one forward pass, for MFU and for estimates: causal counting (each query meets half
// of the keys), matrix products only, 2 FLOP per multiply-add; embedding look-ups count nothing.
#pragma once

#include "model/config.h"

namespace sala {

// Per token, of one mixer with its projections, in documents of `length` tokens.
double mixer_flops(const ModelConfig& config, Mixer mixer, int64_t length, bool sparse);
double mlp_flops(const ModelConfig& config);
double head_flops(const ModelConfig& config);
// Per token, the whole model.
double forward_flops(const ModelConfig& config, int64_t length, bool sparse);

// Per token, of teaching the sparse layers their choice of blocks (kernels/selection/loss.h),
// forward and backward, in documents of `length` tokens. Not causal: a picked query's products meet
// all keys and windows of its document. In fp32. No part of MFU.
double selection_loss_flops(const ModelConfig& config, int64_t length);

int64_t num_parameters(const ModelConfig& config);  // tied tensors once, no padding
int64_t mixer_parameters(const ModelConfig& config, Mixer mixer);

}  // namespace sala
