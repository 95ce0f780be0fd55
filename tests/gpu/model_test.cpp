// The model and the training step on a GPU in bf16 against the CPU in fp32. Skipped without a GPU.
#include <gtest/gtest.h>

#include "model/convert.h"
#include "model/model.h"
#include "trainer/ranks/device_info.h"
#include "trainer/step.h"

namespace sala {

namespace {

ModelConfig small_hybrid() {
  ModelConfig c;
  c.family = "minicpm_sala";
  c.num_layers = 4;
  c.width = 256;
  c.ffn_width = 512;
  c.vocab_size = 1000;
  c.num_heads = 6;
  c.num_kv_heads = 2;
  c.lightning_kv_heads = 6;
  c.head_size = 64;
  c.max_position = 8192;
  c.tied_head = true;
  c.sparse = {32, 16, 1, 64, 128, 2, 400};
  c.mixers = {Mixer::kSparse, Mixer::kLightning, Mixer::kLightning, Mixer::kSparse};
  return c;
}

std::unique_ptr<Model> model_on(at::Device device, at::ScalarType dtype) {
  auto model = std::make_unique<Model>(small_hybrid(), dtype, device);
  at::Generator generator = at::detail::createCPUGenerator(11);
  for (Weights& part : model->parts()) {
    for (size_t i = 0; i < part.views().size(); ++i) {
      const at::Tensor& view = part.views()[i];
      const bool one = part.layout().entries[i].init == Init::kOnes;
      view.copy_(at::randn(view.sizes(), generator, at::kFloat) * 0.06 + (one ? 1.0 : 0.0));
    }
  }
  return model;
}

// Three documents: short, long enough to go sparse, one token.
Batch batch_on(at::Device device) {
  const int64_t T = 700;
  at::Generator generator = at::detail::createCPUGenerator(3);
  Batch batch;
  batch.ids = at::randint(0, 1000, {T}, generator, at::kLong).to(device);
  batch.targets = at::randint(0, 1000, {T}, generator, at::kLong).to(device);
  batch.loss_weight = at::ones({T}).to(device);
  batch.docs = Documents::from_starts({0, 130, 699}, T, device);
  at::Tensor position = at::empty({T}, at::kLong);
  for (int64_t d = 0; d < batch.docs.count(); ++d) {
    position.narrow(0, batch.docs.offsets[d], batch.docs.length(d))
        .copy_(at::arange(batch.docs.length(d)));
  }
  batch.position = position.to(device);
  batch.global_weight = static_cast<double>(T);
  return batch;
}

struct Stepped {
  StepResult first, second;
};

Stepped two_steps(at::Device device, at::ScalarType dtype) {
  auto model = model_on(device, dtype);
  std::vector<TrainedPart> parts;
  for (Weights& part : model->parts()) parts.push_back(make_trained(part));
  OptimizerOptions options;
  options.schedule.lr = 1e-3;
  auto comm = make_single_comm();
  Optimizer optimizer(parts, options);
  Replicated sharding(model->part_pointers(), *comm);
  NextTokenLoss loss;
  StepOptions step;
  step.lr = 1e-3;
  const Batch batch = batch_on(device);
  Stepped out;
  out.first = train_step(*model, loss, {&batch, 1}, sharding, optimizer, *comm, step);
  out.second = train_step(*model, loss, {&batch, 1}, sharding, optimizer, *comm, step);
  return out;
}

class Gpu : public testing::Test {
 protected:
  void SetUp() override {
    if (num_gpus() < 1) GTEST_SKIP() << "needs a GPU and a build with CUDA";
  }
  const at::Device gpu_{at::kCUDA, 0};
};

}  // namespace

TEST_F(Gpu, HiddenStatesAgreeWithTheCpu) {
  auto on_cpu = model_on(at::kCPU, at::kFloat);
  auto on_gpu = model_on(gpu_, at::kBFloat16);
  const Batch cpu_batch = batch_on(at::kCPU), gpu_batch = batch_on(gpu_);
  const at::Tensor expected = on_cpu->hidden(on_cpu->env(cpu_batch, false));
  const at::Tensor hidden = on_gpu->hidden(on_gpu->env(gpu_batch, false)).to(at::kFloat).cpu();
  EXPECT_LE((hidden - expected).norm().item<double>() / expected.norm().item<double>(), 0.03);
}

TEST_F(Gpu, StepsAgreeWithTheCpu) {
  const Stepped cpu = two_steps(at::kCPU, at::kFloat), gpu = two_steps(gpu_, at::kBFloat16);
  EXPECT_NEAR(gpu.first.loss.loss, cpu.first.loss.loss, 3e-3 * cpu.first.loss.loss);
  EXPECT_NEAR(gpu.first.grad_norm, cpu.first.grad_norm, 3e-2 * cpu.first.grad_norm);
  EXPECT_NEAR(gpu.second.loss.loss, cpu.second.loss.loss, 3e-3 * cpu.second.loss.loss);
}

TEST_F(Gpu, StepsAreBitEqualFromRunToRun) {
  const Stepped one = two_steps(gpu_, at::kBFloat16), two = two_steps(gpu_, at::kBFloat16);
  EXPECT_EQ(one.second.loss.loss, two.second.loss.loss);
  EXPECT_EQ(one.second.part_norms, two.second.part_norms);
}

TEST_F(Gpu, DocumentsDoNotSeeEachOther) {
  auto model = model_on(gpu_, at::kBFloat16);
  Batch batch = batch_on(gpu_);
  const at::Tensor before = model->hidden(model->env(batch, true)).clone();
  batch.ids.narrow(0, 0, 130).fill_(7);
  const at::Tensor after = model->hidden(model->env(batch, true));
  EXPECT_TRUE(at::equal(before.narrow(0, 130, 570), after.narrow(0, 130, 570)));
}

}  // namespace sala
