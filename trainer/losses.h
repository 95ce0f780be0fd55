// What a step minimises, from the final norm's output on. Losses are means over the step's global
// target weight: all micro-batches of all ranks together.
#pragma once

#include <ATen/ATen.h>

#include "kernels/ops.h"
#include "model/model.h"

namespace sala {

struct LossValue {
  double loss = 0, kl = 0, ce = 0;
};
// The same three numbers where they are summed: on the model's device, (3) fp64. They reach the
// host once per step.
at::Tensor zero_loss(at::Device device);
LossValue to_host(const at::Tensor& sums);

class Loss {
 public:
  virtual ~Loss() = default;
  // x (T, C): final-norm output of `model`. Fills dx; adds the vocabulary projection's gradient to
  // its part's fp32 gradient where that trains. Returns this micro-batch's part of the global
  // means as (3) fp64: loss, KL, next-token loss. No host sync on CUDA.
  virtual at::Tensor forward_backward(Model& model, const at::Tensor& x, const Batch& batch,
                                      at::Tensor& dx) = 0;
};

class NextTokenLoss : public Loss {
 public:
  at::Tensor forward_backward(Model& model, const at::Tensor& x, const Batch& batch,
                              at::Tensor& dx) override;
};

// KL(teacher || student) on the full vocabulary, mixed with next-token loss by `config`.
class DistillLoss : public Loss {
 public:
  DistillLoss(const Model& teacher, DistillConfig config) : teacher_(teacher), config_(config) {}
  at::Tensor forward_backward(Model& model, const at::Tensor& x, const Batch& batch,
                              at::Tensor& dx) override;

 private:
  const Model& teacher_;
  DistillConfig config_;
};

}  // namespace sala
