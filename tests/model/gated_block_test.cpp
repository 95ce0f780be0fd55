// A block between two mixers: at its ends it is either block, and gate and input have the gradients
// of central differences, recomputed or not.
#include "model/gated_block.h"

#include <gtest/gtest.h>

#include "tests/model/unit_cases.h"

namespace sala {
namespace {

ModelConfig linear_config(const ModelConfig& attention) {
  ModelConfig config = small_config(Mixer::kLightning);
  config.residual_scale = attention.residual_scale;
  return config;
}

// Attention and lightning mixer of one block, in fp64, with the batch that both see.
struct Pair {
  explicit Pair(const ModelConfig& attention, Batch tokens)
      : held(attention), linear(linear_config(attention)), batch(std::move(tokens)) {
    env = held.env(batch, false);
    linear_env = linear.env(batch, false);
    x = at::randn({batch.num_tokens(), attention.width}, at::kDouble);
    dy = at::randn_like(x);
  }

  GatedCall call(double gate) {
    std::vector<Weights>& parts = held.weights.parts();
    return {0,         gate,     held.model.config(),       linear.model.config(),
            parts[1],  parts[2], linear.weights.parts()[2], env,
            linear_env};
  }
  at::Tensor output(double gate, const at::Tensor& input) {
    GatedSaved saved;
    return gated_forward(call(gate), input, saved);
  }
  GatedGradient gradient(double gate, Recompute level = Recompute::kNone) {
    GatedSaved saved;
    gated_forward(call(gate), x, saved);
    saved.trim(level);
    if (level != Recompute::kNone) gated_forward(call(gate), saved.block.input, saved);
    return gated_backward(call(gate), dy, saved);
  }

  HeldModel held, linear;
  Batch batch;
  Env env, linear_env;
  at::Tensor x, dy;
};

std::vector<UnitCase> attention_cases() {
  std::vector<UnitCase> cases;
  for (UnitCase& unit_case : unit_cases()) {
    if (unit_case.config.mixers[0] == Mixer::kFull) cases.push_back(std::move(unit_case));
  }
  return cases;
}

class GatedBlock : public ::testing::Test {
 protected:
  void SetUp() override { at::manual_seed(5); }
};

TEST_F(GatedBlock, OpenIsTheModelsBlockAndClosedTheLinearOne) {
  for (const UnitCase& unit_case : attention_cases()) {
    SCOPED_TRACE(unit_case.name);
    Pair pair(unit_case.config, mixed_documents());
    const GatedCall c = pair.call(0.5);
    const at::Tensor open =
        block_forward({c.config, 0, Mixer::kFull, c.block, c.attention, c.env, nullptr}, pair.x);
    const at::Tensor closed = block_forward(
        {c.linear_config, 0, Mixer::kLightning, c.block, c.linear, c.linear_env, nullptr}, pair.x);
    EXPECT_LE((pair.output(1, pair.x) - open).abs().max().item<double>(), 1e-12);
    EXPECT_LE((pair.output(0, pair.x) - closed).abs().max().item<double>(), 1e-12);
    EXPECT_GT((open - closed).abs().max().item<double>(), 1e-2);
  }
}

TEST_F(GatedBlock, GateAndInputHaveTheGradientsOfCentralDifferences) {
  constexpr double kStep = 1e-6;
  for (const UnitCase& unit_case : attention_cases()) {
    for (const double gate : {0.0, 0.3, 1.0}) {
      SCOPED_TRACE(unit_case.name + ", gate " + std::to_string(gate));
      Pair pair(unit_case.config, mixed_documents());
      const GatedGradient got = pair.gradient(gate);
      const at::Tensor to_x = at::randn_like(pair.x);
      const auto value = [&](double gate_step, double x_step) {
        const at::Tensor y = pair.output(gate + gate_step, pair.x + x_step * to_x);
        return (y * pair.dy).sum().item<double>();
      };
      const double d_gate = (value(kStep, 0) - value(-kStep, 0)) / (2 * kStep);
      EXPECT_NEAR(got.d_gate_T.sum().item<double>(), d_gate, 1e-6 * (1 + std::abs(d_gate)));
      const double d_x = (value(0, kStep) - value(0, -kStep)) / (2 * kStep);
      EXPECT_NEAR((got.dx * to_x).sum().item<double>(), d_x, 1e-6 * (1 + std::abs(d_x)));
    }
  }
}

TEST_F(GatedBlock, RecomputedGradientsHaveTheSameBits) {
  Pair pair(small_config(Mixer::kFull), mixed_documents());
  const GatedGradient kept = pair.gradient(0.3);
  for (const Recompute level : {Recompute::kSelective, Recompute::kFull}) {
    const GatedGradient again = pair.gradient(0.3, level);
    EXPECT_TRUE(again.dx.equal(kept.dx));
    EXPECT_TRUE(again.d_gate_T.equal(kept.d_gate_T));
  }
}

}  // namespace
}  // namespace sala
