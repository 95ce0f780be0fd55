// The model and the training step on a GPU in bf16 against the CPU in fp32. Skipped without a GPU.
#include <gtest/gtest.h>

#include "model/forward.h"
#include "tests/gpu/small_network.h"
#include "trainer/ranks/device_info.h"
#include "trainer/step.h"

namespace sala {

namespace {

at::Tensor features(SmallNetwork& on, const Batch& batch, bool sparse) {
  Network& network = on.network;
  return hidden(network.model, network.parameters, network.model.env(batch, sparse));
}

struct Stepped {
  StepResult first, second;
};

Stepped two_steps(at::Device device, at::ScalarType dtype, Recompute recompute = Recompute::kNone,
                  InputOffload* offload = nullptr) {
  SmallNetwork alone(device, dtype);
  Network& network = alone.network;
  OptimizerOptions options;
  options.schedule.lr = 1e-3;
  auto comm = make_single_comm();
  Optimizer optimizer(network.parameters, options);
  NextTokenLoss loss;
  const Batch batch = batch_on(device);
  auto step = [&] {
    return take_step({&batch, 1},
                     [&](const Batch& b, bool last) {
                       return model_passes(network, loss, b, last,
                                           {.recompute = recompute, .offload = offload});
                     },
                     network.parameters, optimizer, *comm, {.lr = 1e-3});
  };
  Stepped out;
  out.first = step();
  out.second = step();
  return out;
}

}  // namespace

class Gpu : public testing::Test {
 protected:
  void SetUp() override {
    if (num_gpus() < 1) GTEST_SKIP() << "needs a GPU and a build with CUDA";
  }
  const at::Device gpu_{at::kCUDA, 0};
};

TEST_F(Gpu, HiddenStatesAgreeWithTheCpu) {
  SmallNetwork on_cpu(at::kCPU, at::kFloat), on_gpu(gpu_, at::kBFloat16);
  const Batch cpu_batch = batch_on(at::kCPU), gpu_batch = batch_on(gpu_);
  const at::Tensor expected = features(on_cpu, cpu_batch, false);
  const at::Tensor x = features(on_gpu, gpu_batch, false).to(at::kFloat).cpu();
  EXPECT_LE((x - expected).norm().item<double>() / expected.norm().item<double>(), 0.03);
}

TEST_F(Gpu, StepsAgreeWithTheCpu) {
  const Stepped cpu = two_steps(at::kCPU, at::kFloat), gpu = two_steps(gpu_, at::kBFloat16);
  EXPECT_NEAR(gpu.first.losses[kLoss], cpu.first.losses[kLoss], 3e-3 * cpu.first.losses[kLoss]);
  EXPECT_NEAR(gpu.first.grad_norm, cpu.first.grad_norm, 3e-2 * cpu.first.grad_norm);
  EXPECT_NEAR(gpu.second.losses[kLoss], cpu.second.losses[kLoss], 3e-3 * cpu.second.losses[kLoss]);
}

TEST_F(Gpu, StepsAreBitEqualFromRunToRun) {
  const Stepped one = two_steps(gpu_, at::kBFloat16), two = two_steps(gpu_, at::kBFloat16);
  EXPECT_EQ(one.second.losses[kLoss], two.second.losses[kLoss]);
  EXPECT_EQ(one.second.part_norms, two.second.part_norms);
}

TEST_F(Gpu, RecomputingChangesNoBit) {
  const Stepped kept = two_steps(gpu_, at::kBFloat16);
  for (Recompute level : {Recompute::kSelective, Recompute::kFull}) {
    const Stepped again = two_steps(gpu_, at::kBFloat16, level);
    EXPECT_EQ(kept.second.losses, again.second.losses);
    EXPECT_EQ(kept.second.part_norms, again.second.part_norms);
  }
}

TEST_F(Gpu, InputsThatWaitOnTheHostChangeNoBit) {
  const Stepped kept = two_steps(gpu_, at::kBFloat16);
  InputOffload offload(gpu_);
  const Stepped offloaded = two_steps(gpu_, at::kBFloat16, Recompute::kFull, &offload);
  EXPECT_GT(offload.num_host_bytes(), 0);
  EXPECT_EQ(kept.second.losses, offloaded.second.losses);
  EXPECT_EQ(kept.second.part_norms, offloaded.second.part_norms);
}

TEST_F(Gpu, DocumentsDoNotSeeEachOther) {
  SmallNetwork alone(gpu_, at::kBFloat16);
  Batch batch = batch_on(gpu_);
  const at::Tensor before = features(alone, batch, true).clone();
  batch.ids.narrow(0, 0, 130).fill_(7);
  const at::Tensor after = features(alone, batch, true);
  EXPECT_TRUE(at::equal(before.narrow(0, 130, 570), after.narrow(0, 130, 570)));
}

}  // namespace sala
