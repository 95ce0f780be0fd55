// A block between two mixers on a GPU in bf16: against the CPU in fp32, and recomputed with the
// same bits. Skipped without a GPU.
#include "model/gated_block.h"

#include <gtest/gtest.h>

#include "tests/gpu/relative_error.h"
#include "tests/gpu/small_hybrid.h"

namespace sala {

namespace {

ModelConfig one_layer(Mixer mixer) {
  ModelConfig c = small_hybrid();
  c.num_layers = 1;
  c.mixers = {mixer};
  return c;
}

HeldWeights random_weights(const Model& model, at::Device device, at::ScalarType dtype) {
  HeldWeights weights(model.layouts(), dtype, device);
  at::Generator generator = at::detail::createCPUGenerator(11);
  for (const Weights& part : weights.parts()) set_random(part, generator);
  return weights;
}

GatedGradient differentiate(at::Device device, at::ScalarType dtype, Recompute level) {
  const Model model(one_layer(Mixer::kFull)), linear(one_layer(Mixer::kLightning));
  HeldWeights own = random_weights(model, device, dtype);
  HeldWeights aligned = random_weights(linear, device, dtype);
  const Batch batch = batch_on(device);
  const Env env = model.env(batch, false), linear_env = linear.env(batch, false);
  const GatedCall call{0,
                       0.3,
                       model.config(),
                       linear.config(),
                       own.parts()[1],
                       own.parts()[2],
                       aligned.parts()[2],
                       env,
                       linear_env};
  at::Generator generator = at::detail::createCPUGenerator(5);
  const auto draw = [&] {
    return at::randn({batch.num_tokens(), model.config().width}, generator, at::kFloat)
        .to(device, dtype);
  };
  const at::Tensor x = draw(), dy = draw();
  GatedSaved saved;
  gated_forward(call, x, saved);
  saved.trim(level);
  if (level != Recompute::kNone) gated_forward(call, x, saved);
  return gated_backward(call, dy, saved);
}

}  // namespace

TEST(GpuGatedBlock, GradientsAgreeWithTheCpuAndAreMadeAgainWithTheSameBits) {
  if (!at::hasCUDA()) GTEST_SKIP() << "needs a GPU and a build with CUDA";
  const at::NoGradGuard no_grad;
  const GatedGradient cpu = differentiate(at::kCPU, at::kFloat, Recompute::kNone);
  const at::Device gpu(at::kCUDA, 0);
  const GatedGradient kept = differentiate(gpu, at::kBFloat16, Recompute::kNone);
  EXPECT_LE(relative_error(kept.dx, cpu.dx), 0.05);
  EXPECT_LE(relative_error(kept.d_gate_T, cpu.d_gate_T), 0.05);
  const GatedGradient again = differentiate(gpu, at::kBFloat16, Recompute::kFull);
  EXPECT_TRUE(again.dx.equal(kept.dx));
  EXPECT_TRUE(again.d_gate_T.equal(kept.d_gate_T));
}

}  // namespace sala
