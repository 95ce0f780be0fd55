// Gradients of units on a GPU in bf16, part by part: against the CPU in fp32, and the same bits
// from run to run and at every level of recompute. Skipped without a GPU.
#include <gtest/gtest.h>

#include "kernels/ops.h"
#include "model/model.h"
#include "tests/gpu/relative_error.h"
#include "tests/gpu/small_hybrid.h"

namespace sala {

namespace {

struct Held {
  Held(at::Device device, at::ScalarType dtype)
      : model(small_hybrid()), weights(model.layouts(), dtype, device) {
    at::Generator generator = at::detail::createCPUGenerator(11);
    for (const Weights& part : weights.parts()) set_random(part, generator);
  }
  Model model;
  HeldWeights weights;
};

struct Differentiated {
  double loss = 0;
  std::vector<at::Tensor> gradients;  // flat, by part, fp32 on the CPU
};

// One batch forward and backward, next-token loss, as a training step does it.
Differentiated differentiate(Held& held, const Batch& batch, bool sparse,
                             Recompute level = Recompute::kNone) {
  const Model& model = held.model;
  const Env env = model.env(batch, sparse);
  std::vector<Gradient> gradients;
  for (const LayoutPtr& layout : model.layouts()) {
    gradients.emplace_back(layout,
                           at::zeros({layout->num_elements}, at::TensorOptions(batch.ids.device())),
                           std::vector<bool>(layout->entries.size(), true));
  }
  std::vector<const Unit*> units;
  for (const auto& unit : model.units()) units.push_back(unit.get());
  units.push_back(&model.final_norm());
  std::vector<Saved> saved(units.size());
  at::Tensor x;
  for (size_t u = 0; u < units.size(); ++u) {
    saved[u].input = x;
    x = units[u]->forward(held.weights.lease(units[u]->parts), x, env, &saved[u]);
    saved[u].trim(level);
  }
  at::Tensor dx;
  const Lease head = held.weights.lease(model.head_parts());
  const VocabLoss loss = linear_cross_entropy(
      x, model.head_weight(head), batch.targets, batch.loss_weight, model.config().logit_scale, &dx,
      gradients[model.head_weight_part()].view(model.head_weight_name()));
  for (size_t u = units.size(); u-- > 0;) {
    const Lease lease = held.weights.lease(units[u]->parts);
    if (saved[u].trimmed()) units[u]->forward(lease, saved[u].input, env, &saved[u]);
    std::vector<Gradient*> own;
    for (size_t part : units[u]->parts) own.push_back(&gradients[part]);
    dx = units[u]->backward(lease, dx, env, saved[u], own);
  }
  Differentiated out{loss.loss_sum.item<double>(), {}};
  for (const Gradient& gradient : gradients) out.gradients.push_back(gradient.flat.cpu());
  return out;
}

}  // namespace

class GpuUnits : public testing::Test {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "needs a GPU and a build with CUDA";
  }
  const at::Device cpu_{at::kCPU}, gpu_{at::kCUDA, 0};
};

TEST_F(GpuUnits, LossAndGradientsAgreeWithTheCpu) {
  Held on_cpu(cpu_, at::kFloat), on_gpu(gpu_, at::kBFloat16);
  const Differentiated cpu = differentiate(on_cpu, batch_on(cpu_), false);
  const Differentiated gpu = differentiate(on_gpu, batch_on(gpu_), false);
  EXPECT_NEAR(gpu.loss, cpu.loss, 3e-3 * cpu.loss);
  for (size_t part = 0; part < cpu.gradients.size(); ++part) {
    EXPECT_LE(relative_error(gpu.gradients[part], cpu.gradients[part]), 0.05) << part;
  }
}

TEST_F(GpuUnits, GradientsAreTheSameBitsAtEveryRunAndRecompute) {
  Held held(gpu_, at::kBFloat16);
  const Batch batch = batch_on(gpu_);
  const Differentiated first = differentiate(held, batch, true);
  for (Recompute level : {Recompute::kNone, Recompute::kSelective, Recompute::kFull}) {
    const Differentiated again = differentiate(held, batch, true, level);
    EXPECT_EQ(again.loss, first.loss);
    for (size_t part = 0; part < first.gradients.size(); ++part) {
      EXPECT_TRUE(at::equal(again.gradients[part], first.gradients[part])) << part;
    }
  }
}

}  // namespace sala
