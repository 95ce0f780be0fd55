// One row through the model with a gate in every layer, forward and backward.
#pragma once

#include <ATen/ATen.h>

#include <span>

#include "trainer/run.h"
#include "trainer/scores/rows.h"

namespace sala {

// (2 + L) fp64 on the device: KL(teacher || gated model) in nats as a mean over the row's plain
// positions, as a mean over its recall positions, and the gradient of their sum at every gate.
// `linear`: every layer lightning (run.aligned's configuration). Weights are leased from the
// teacher and run.aligned: a collective where these are sharded. Memory: a block's input and
// attention per layer; the rest is made again on the way back.
at::Tensor gate_pass(Run& run, const Model& linear, const ScoreRow& row,
                     std::span<const double> gates);

}  // namespace sala
