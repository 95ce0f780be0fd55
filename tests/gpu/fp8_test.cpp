// A training step with FP8 products on a GPU: near the step in bf16, the same bits from run to run
// and at every level of recompute. Skipped without FP8 cores.
#include <gtest/gtest.h>

#include "kernels/fp8.h"
#include "tests/gpu/small_network.h"
#include "trainer/ranks/device_info.h"
#include "trainer/step.h"

namespace sala {

namespace {

// A batch of 704 tokens: small_hybrid.h's has 700, no multiple of 16.
Batch sized_batch(at::Device device) {
  const int64_t T = 704;
  at::Generator generator = at::detail::createCPUGenerator(3);
  Batch batch;
  batch.ids = at::randint(0, 1000, {T}, generator, at::kLong).to(device);
  batch.targets = at::randint(0, 1000, {T}, generator, at::kLong).to(device);
  batch.loss_weight = at::ones({T}).to(device);
  batch.docs = Documents::from_starts({0, 130}, T, device);
  batch.position = at::cat({at::arange(130), at::arange(T - 130)}).to(device);
  batch.global_weight = static_cast<double>(T);
  return batch;
}

struct Steps {
  std::vector<double> losses;
  std::vector<std::vector<double>> part_norms;
};

Steps take_steps(const Matmul& matmul, int64_t count, Recompute recompute = Recompute::kNone) {
  const at::Device gpu(at::kCUDA, 0);
  SmallNetwork on_gpu(gpu, at::kBFloat16);
  Network& network = on_gpu.network;
  OptimizerOptions schedule;
  schedule.schedule.lr = 1e-3;
  Optimizer optimizer(network.parameters, schedule);
  auto comm = make_single_comm();
  NextTokenLoss loss;
  const Batch batch = sized_batch(gpu);
  const PassOptions passes{.recompute = recompute, .matmul = matmul};
  Steps steps;
  for (int64_t step = 0; step < count; ++step) {
    const StepResult result = take_step(
        {&batch, 1},
        [&](const Batch& b, bool last) { return model_passes(network, loss, b, last, passes); },
        network.parameters, optimizer, *comm, {.lr = 1e-3});
    steps.losses.push_back(result.losses[kLoss]);
    steps.part_norms.push_back(result.part_norms);
  }
  return steps;
}

}  // namespace

class Fp8StepsCuda : public testing::Test {
 protected:
  void SetUp() override {
    if (num_gpus() < 1 || !has_fp8_cores(at::Device(at::kCUDA, 0))) {
      GTEST_SKIP() << "needs a GPU with FP8 cores and a build with CUDA";
    }
  }
};

namespace {

const Matmul kBf16{}, kFp8{16}, kFp8All{16, true};

}  // namespace

TEST_F(Fp8StepsCuda, LearnAsStepsInBf16Do) {
  const Steps bf16 = take_steps(kBf16, 20);
  for (const Matmul& matmul : {kFp8, kFp8All}) {
    SCOPED_TRACE(matmul.fp8_gradients ? "all" : "without weight gradients");
    const Steps fp8 = take_steps(matmul, 20);
    EXPECT_NE(bf16.losses, fp8.losses) << "nothing was in FP8";
    EXPECT_LT(fp8.losses.back(), 0.9 * fp8.losses.front());
    EXPECT_NEAR(fp8.losses[0], bf16.losses[0], 0.02 * bf16.losses[0]);
    // One batch is learnt by heart, its loss falls from 6 to 0.01: what rounding costs is time.
    for (size_t i = 2; i < bf16.losses.size(); ++i) {
      EXPECT_LE(fp8.losses[i], bf16.losses[i - 2]) << "more than two behind at step " << i + 1;
    }
    const auto &norms = fp8.part_norms[0], &expected = bf16.part_norms[0];
    for (size_t part = 0; part < expected.size(); ++part) {
      EXPECT_NEAR(norms[part], expected[part], 0.1 * expected[part]) << part;
    }
  }
}

TEST_F(Fp8StepsCuda, WeightGradientsAreInFp8WhereAskedFor) {
  const Steps fp8 = take_steps(kFp8, 1), all = take_steps(kFp8All, 1);
  EXPECT_EQ(fp8.losses, all.losses) << "the forward is the same";
  EXPECT_NE(fp8.part_norms, all.part_norms);
}

TEST_F(Fp8StepsCuda, AreTheSameBitsFromRunToRunAndRecomputed) {
  for (const Matmul& matmul : {kFp8, kFp8All}) {
    const Steps first = take_steps(matmul, 2);
    for (const Recompute level : {Recompute::kNone, Recompute::kSelective, Recompute::kFull}) {
      const Steps again = take_steps(matmul, 2, level);
      EXPECT_EQ(again.losses, first.losses);
      EXPECT_EQ(again.part_norms, first.part_norms);
    }
  }
}

}  // namespace sala
