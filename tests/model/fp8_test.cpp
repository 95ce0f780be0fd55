// Blocks whose products with matrices are made in FP8: how far from exact ones, what stays exact,
// and that nothing else about a block changes.
#include <gtest/gtest.h>

#include "model/block.h"
#include "model/feed_forward.h"
#include "model/kept_tensors.h"
#include "tests/model/unit_cases.h"

namespace sala {
namespace {

constexpr int64_t kTokens = 96;

// The cases of the other tests with sizes that FP8 takes.
std::vector<UnitCase> sized_cases() {
  std::vector<UnitCase> cases = unit_cases();
  for (UnitCase& unit_case : cases) {
    ModelConfig& c = unit_case.config;
    c.width = 64;
    c.ffn_width = 96;
    c.head_size = 16;
  }
  return cases;
}

struct Passed {
  at::Tensor y, dx;
  std::vector<Gradient> gradients;  // of block and mixer
  int64_t num_bytes = 0;            // kept between the passes
};

Passed pass(HeldModel& held, const at::Tensor& x, const at::Tensor& dy, const Env& env,
            Recompute level = Recompute::kNone) {
  const Unit& unit = *held.model.units()[1];
  const Lease lease = held.weights.lease(unit.parts);
  Saved saved;
  saved.input = x;
  Passed out;
  out.y = unit.forward(lease, x, env, &saved);
  out.num_bytes = saved.num_bytes();
  saved.trim(level);
  if (saved.trimmed()) unit.forward(lease, x, env, &saved);
  out.gradients = HeldModel::gradients(held.model.layouts(), unit.parts, x.scalar_type());
  out.dx = unit.backward(lease, dy, env, saved, pointers(out.gradients));
  return out;
}

double relative_error(const at::Tensor& a, const at::Tensor& expected) {
  return ((a - expected).norm() / expected.norm()).item<double>();
}

class Fp8Blocks : public ::testing::Test {
 protected:
  void SetUp() override { at::manual_seed(5); }

  static Env env_of(const HeldModel& held, const Batch& batch, const Matmul& matmul) {
    Env env = held.env(batch, /*sparse=*/true);
    env.matmul = matmul;
    return env;
  }
  static Batch batch() { return batch_of({5, 1, 26, 64}, 19); }
  static at::Tensor normal(const HeldModel& held) {
    return at::randn({kTokens, held.model.config().width}, held.weights_dtype);
  }
};

// Matrices that keep the size of what they multiply, as trained ones do: steep softmaxes and chosen
// blocks would make much of little, whatever the rounding.
TEST_F(Fp8Blocks, OutputsAndGradientsStayNearExactOnes) {
  for (const UnitCase& unit_case : sized_cases()) {
    SCOPED_TRACE(unit_case.name);
    HeldModel held(unit_case.config);
    for (Weights& part : held.weights.parts()) {
      for (const at::Tensor& view : part.views()) {
        if (view.dim() == 2) view.mul_(0.4);
      }
    }
    const Batch b = batch();
    const at::Tensor x = normal(held), dy = normal(held);
    Env env = held.env(b, /*sparse=*/false);
    const Passed exact = pass(held, x, dy, env);
    env.matmul = {16};
    const Passed fp8 = pass(held, x, dy, env);
    env.matmul.fp8_gradients = true;
    const Passed all = pass(held, x, dy, env);
    // Up to four products in a row, each off by 3.7 %, beside a residual stream that is exact.
    EXPECT_LE(relative_error(fp8.y, exact.y), 0.08);
    EXPECT_LE(relative_error(fp8.dx, exact.dx), 0.09);
    EXPECT_GE(relative_error(fp8.y, exact.y), 1e-3) << "nothing is in FP8";
    for (size_t part = 0; part < 2; ++part) {
      const at::Tensor& expected = exact.gradients[part].flat;
      EXPECT_LE(relative_error(fp8.gradients[part].flat, expected), 0.12) << part;
      EXPECT_LE(relative_error(all.gradients[part].flat, expected), 0.12) << part;
      EXPECT_FALSE(at::equal(all.gradients[part].flat, fp8.gradients[part].flat)) << part;
    }
    EXPECT_TRUE(at::equal(all.y, fp8.y) && at::equal(all.dx, fp8.dx)) << "only weights differ";
  }
}

TEST_F(Fp8Blocks, RecomputeIsBitEqual) {
  for (const UnitCase& unit_case : sized_cases()) {
    SCOPED_TRACE(unit_case.name);
    HeldModel held(unit_case.config, at::kFloat);
    const Batch b = batch();
    const at::Tensor x = normal(held), dy = normal(held);
    for (const Matmul& matmul : {Matmul{16}, Matmul{16, true}}) {
      const Env env = env_of(held, b, matmul);
      const Passed none = pass(held, x, dy, env);
      for (const Recompute level : {Recompute::kSelective, Recompute::kFull}) {
        const Passed again = pass(held, x, dy, env, level);
        EXPECT_TRUE(at::equal(again.dx, none.dx));
        for (size_t part = 0; part < 2; ++part) {
          EXPECT_TRUE(at::equal(again.gradients[part].flat, none.gradients[part].flat)) << part;
        }
      }
    }
  }
}

TEST_F(Fp8Blocks, KeepWhatOthersKeepAndForwardWithoutGradientIsTheSame) {
  for (const UnitCase& unit_case : sized_cases()) {
    SCOPED_TRACE(unit_case.name);
    HeldModel held(unit_case.config, at::kFloat);
    const Batch b = batch();
    const Env env = env_of(held, b, {16});
    const at::Tensor x = normal(held), before = x.clone();
    const Passed fp8 = pass(held, x, x, env);
    EXPECT_EQ(fp8.num_bytes, pass(held, x, x, env_of(held, b, {0})).num_bytes);
    const Unit& unit = *held.model.units()[1];
    const at::Tensor y = unit.forward(held.weights.lease(unit.parts), x, env, nullptr);
    EXPECT_TRUE(at::equal(y, fp8.y));
    EXPECT_TRUE(at::equal(x, before));
  }
}

TEST_F(Fp8Blocks, ProductsThatAreTooSmallOrOddStayAsTheyAre) {
  HeldModel held(sized_cases()[0].config, at::kFloat);
  const at::Tensor x = normal(held);
  const Batch b = batch();
  const Passed exact = pass(held, x, x, env_of(held, b, {0}));
  // kTokens is the largest size that all products reach in one of their three.
  EXPECT_TRUE(at::equal(pass(held, x, x, env_of(held, b, {kTokens + 1})).y, exact.y));
  EXPECT_FALSE(at::equal(pass(held, x, x, env_of(held, b, {64})).y, exact.y));
  const Batch odd = batch_of({5, 1, 27, 64}, 19);  // 97 tokens
  const at::Tensor odd_x = at::randn({97, 64});
  EXPECT_TRUE(at::equal(pass(held, odd_x, odd_x, env_of(held, odd, {16})).y,
                        pass(held, odd_x, odd_x, env_of(held, odd, {0})).y));
}

TEST_F(Fp8Blocks, TheRuleAsksForAllThreeSizes) {
  const Matmul matmul{64};
  EXPECT_TRUE(matmul.in_fp8(64, 64, 64));
  EXPECT_FALSE(matmul.in_fp8(48, 64, 64));
  EXPECT_FALSE(matmul.in_fp8(64, 48, 64));
  EXPECT_FALSE(matmul.in_fp8(64, 64, 48));
  EXPECT_FALSE(matmul.in_fp8(72, 64, 64));
  EXPECT_FALSE(matmul.in_fp8(64, 64, 72));
  EXPECT_FALSE(Matmul{}.in_fp8(64, 64, 64));
}

// As large as the matrices that a block multiplies with, biases and norms aside.
TEST_F(Fp8Blocks, ProductsOfABlockAreItsMatrices) {
  for (const UnitCase& unit_case : sized_cases()) {
    SCOPED_TRACE(unit_case.name);
    const Model model(unit_case.config);
    int64_t products = 0, matrices = 0;
    for (const BlockProduct& p : block_products(unit_case.config, unit_case.config.mixers[0])) {
      products += p.in * p.out;
    }
    for (const size_t part : model.units()[1]->parts) {
      for (const Entry& entry : model.layouts()[part]->entries) {
        if (entry.shape.size() == 2) matrices += entry.num_elements();
      }
    }
    EXPECT_EQ(products, matrices);
  }
}

TEST_F(Fp8Blocks, ThePlanCountsTheOperandsOfTheLargestProduct) {
  const ModelConfig c = sized_cases()[0].config;
  const PassShape shape{kTokens, 2, false};
  EXPECT_EQ(fp8_moment_bytes(c, Mixer::kFull, shape, Recompute::kFull, Matmul{}), 0);
  EXPECT_EQ(fp8_moment_bytes(c, Mixer::kFull, shape, Recompute::kFull, Matmul{kTokens + 1}), 0);
  // gate | up: 64 to 192, in the gradient of its input.
  EXPECT_EQ(fp8_moment_bytes(c, Mixer::kFull, shape, Recompute::kFull, Matmul{16}),
            kTokens * 192 + 64 * 192 + 4 * (kTokens + 64));
  // In that of its weights, with its own memory and dy by rows.
  EXPECT_EQ(fp8_moment_bytes(c, Mixer::kFull, shape, Recompute::kFull, Matmul{16, true}),
            (192 + 64) * kTokens + 4 * (192 + 64) + kTokens * 192 + 4 * kTokens + kFp8AddBytes);
  // A CPU widens both operands, so that the gradient of the input is the largest again.
  EXPECT_EQ(
      fp8_moment_bytes(c, Mixer::kFull, {kTokens, 4, false}, Recompute::kFull, Matmul{16, true}),
      5 * (kTokens + 64) * 192 + 4 * (kTokens + 64));
  // Long sequences take the feed-forward part in tiles where it is not kept: q | k | v is the
  // largest then, with all tokens.
  const int64_t T = 4 * kFeedForwardTile, qkv = block_products(c, Mixer::kFull)[0].out;
  const auto dx = [T](int64_t out) { return (T + 64) * out + 4 * (T + 64); };
  const PassShape many{T, 2, false};
  EXPECT_EQ(fp8_moment_bytes(c, Mixer::kFull, many, Recompute::kFull, Matmul{16}), dx(qkv));
  EXPECT_EQ(fp8_moment_bytes(c, Mixer::kFull, many, Recompute::kSelective, Matmul{16}), dx(192));
}

}  // namespace
}  // namespace sala
