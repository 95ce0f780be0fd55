// Rotary position embedding tables for every kind that the source families use: default, linear,
// llama3, yarn, longrope, with the formulas of the transformers library (modeling_rope_utils).
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "model/config.h"

namespace sala {

struct RopeTable {
  at::Tensor cos, sin;  // (T, HS/2) fp32; the kind's attention factor is folded in
};

// Inverse frequencies (HS/2) fp64 on the CPU. `num_positions` picks longrope's factor list: the
// short one up to original_max_position, as transformers does per forward call.
at::Tensor rope_inverse_frequencies(const RopeConfig& rope, int64_t head_size,
                                    int64_t num_positions);
double rope_attention_factor(const RopeConfig& rope, int64_t max_position);

// Angles are formed in fp32 (positions * inverse frequencies), as the official models do.
// `position` (T) int64 on any device; the table is on the same device.
RopeTable rope_table(const RopeConfig& rope, int64_t head_size, int64_t max_position,
                     const at::Tensor& position, int64_t num_positions);

// Tables of a decode step, whose rows are the last tokens of sequences of position + 1 tokens:
// longrope picks its factors by row, on the device, and the host waits for nothing. Otherwise the
// numbers of rope_table.
class StepRope {
 public:
  StepRope() = default;  // no table
  StepRope(const RopeConfig& rope, int64_t head_size, int64_t max_position, at::Device device);
  // position (S) integer, on the device of the table.
  RopeTable at(const at::Tensor& position) const;

 private:
  at::Tensor short_, long_;  // (HS/2) fp32; long_ undefined where length does not matter
  int64_t original_ = 0;
  double factor_ = 1;
};

}  // namespace sala
