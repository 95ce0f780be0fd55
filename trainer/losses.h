// What a step minimises, from the final norm's output on. Losses are means over the step's global
// target weight: all micro-batches of all ranks together.
#pragma once

#include <ATen/ATen.h>

#include <future>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/ops.h"
#include "kernels/topk.h"
#include "trainer/network.h"

namespace sala {

class CutTeacher;  // trainer/teacher/cut.h
struct StepRows;   // data/loader.h

// A model's vocabulary projection while it is leased.
struct LeasedHead {
  const Model& model;
  const Lease& lease;  // of model.head_parts()
};

// This micro-batch's part of the global means: loss, KL to the teacher, next-token loss; then,
// where the batch knows its sources, of each source the sum of its tokens' losses and of their
// weights.
inline constexpr size_t kLoss = 0, kKl = 1, kCe = 2, kBySource = 3;

class Loss {
 public:
  virtual ~Loss() = default;
  // Around a step's passes, on all ranks together; `rows` are this rank's.
  virtual void begin_step(const StepRows& /*rows*/) {}
  virtual void end_step() {}
  // Instead of both, where no token of the step counts as a target: no passes follow.
  virtual void pass_over(const StepRows& /*rows*/) {}
  // What it keeps for later runs becomes durable, beside the steps that follow: it is when the
  // future is ready, which throws on this rank where it cannot. Invalid: nothing is kept.
  virtual std::shared_future<void> make_durable() { return {}; }
  // Before the model's own forward pass: what needs other models' weights.
  virtual void prepare(const Batch& /*batch*/) {}
  // x (T, C): final-norm output. Fills dx and adds the vocabulary projection's gradient to d_head
  // (V, C) fp32, where that is defined. Returns (3 + 2 * num_sources) fp64 on the
  // device. No host sync on CUDA.
  virtual at::Tensor forward_backward(const LeasedHead& head, const at::Tensor& x,
                                      const Batch& batch, at::Tensor& dx,
                                      const at::Tensor& d_head) = 0;
};

class NextTokenLoss : public Loss {
 public:
  at::Tensor forward_backward(const LeasedHead& head, const at::Tensor& x, const Batch& batch,
                              at::Tensor& dx, const at::Tensor& d_head) override;
};

// How KL and next-token loss are mixed.
class LossMix {
 public:
  // `ce_weights`: shares of next-token loss by the batch's source ids, instead of the config's one;
  // empty: that one.
  explicit LossMix(DistillConfig config, std::vector<double> ce_weights = {})
      : config_(std::move(config)), ce_weights_(std::move(ce_weights)) {}
  DistillConfig of(const Batch& batch);

 private:
  DistillConfig config_;
  std::vector<double> ce_weights_;
  at::Tensor on_device_;  // ce_weights_, where the first batch was
};

// KL(teacher || student) on the full vocabulary, mixed with next-token loss. The teacher's pass
// comes first and leaves its hidden states; its weights are not there while the student's are.
class DistillLoss : public Loss {
 public:
  DistillLoss(Network& teacher, LossMix mix) : teacher_(teacher), mix_(std::move(mix)) {}
  void prepare(const Batch& batch) override;
  at::Tensor forward_backward(const LeasedHead& head, const at::Tensor& x, const Batch& batch,
                              at::Tensor& dx, const at::Tensor& d_head) override;

 private:
  Network& teacher_;
  LossMix mix_;
  at::Tensor x_teacher_;  // (T, C) of the batch that was prepared
};

// The same with a cut teacher (kernels/topk.h), which may have been asked in an earlier run.
class TopkDistillLoss : public Loss {
 public:
  TopkDistillLoss(std::unique_ptr<CutTeacher> teacher, LossMix mix);
  ~TopkDistillLoss() override;
  void begin_step(const StepRows& rows) override;
  void end_step() override;
  void pass_over(const StepRows& rows) override;
  std::shared_future<void> make_durable() override;
  void prepare(const Batch& batch) override;
  at::Tensor forward_backward(const LeasedHead& head, const at::Tensor& x, const Batch& batch,
                              at::Tensor& dx, const at::Tensor& d_head) override;

 private:
  std::unique_ptr<CutTeacher> teacher_;
  LossMix mix_;
  TopkTeacher words_;  // on the batch that was prepared
};

}  // namespace sala
