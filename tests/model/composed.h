// The oracle of the units' tests: embedding, block and final norm composed of LibTorch ops and the
// differentiable functions of differentiable_ops.h, one product per matrix, so that LibTorch's
// autograd gives the gradients that the written backward must.
#pragma once

#include <ATen/ATen.h>

#include <string_view>
#include <vector>

#include "model/unit.h"

namespace sala {

// A part's tensors as leaves of a graph.
struct Leaves {
  explicit Leaves(const Weights& weights);
  at::Tensor find(std::string_view suffix) const;  // undefined when absent
  at::Tensor operator[](std::string_view suffix) const;
  at::Tensor flat_gradient() const;  // through the layout; zeros where there is none

  LayoutPtr layout;
  std::vector<at::Tensor> tensors;
};

at::Tensor composed_mixer(const ModelConfig& config, Mixer mixer, const Leaves& weights,
                          const at::Tensor& x, const Env& env);
at::Tensor composed_block(const ModelConfig& config, Mixer mixer, const Leaves& block,
                          const Leaves& mixer_weights, const at::Tensor& x, const Env& env);

}  // namespace sala
