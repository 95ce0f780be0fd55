// Rotary frequencies against the numbers of transformers (inverse frequencies and attention factor
// of tiny configurations, printed with ten digits), and the table's shape and arithmetic.
#include "model/rope.h"

#include <gtest/gtest.h>

#include <cmath>

namespace sala {
namespace {

using Kind = RopeConfig::Kind;

RopeConfig make(Kind kind) {
  RopeConfig rope;
  rope.kind = kind;
  rope.original_max_position = 32;
  rope.factor = 4;
  return rope;
}

void expect_frequencies(const RopeConfig& rope, int64_t num_positions,
                        const std::vector<double>& expected) {
  const auto head_size = static_cast<int64_t>(2 * expected.size());
  const at::Tensor got = rope_inverse_frequencies(rope, head_size, num_positions);
  ASSERT_EQ(got.scalar_type(), at::kDouble);
  for (size_t i = 0; i < expected.size(); ++i) {
    const double value = got[static_cast<int64_t>(i)].item<double>();
    EXPECT_NEAR(value, expected[i], 2e-7 * expected[i]) << "frequency " << i;
  }
}

TEST(Rope, FrequenciesAreThoseOfTransformers) {
  expect_frequencies(make(Kind::kDefault), 10,
                     {1.000000000e+00, 3.162277639e-01, 1.000000015e-01, 3.162277862e-02,
                      9.999999776e-03, 3.162277862e-03, 1.000000047e-03, 3.162277862e-04});
  expect_frequencies(make(Kind::kLinear), 10,
                     {2.500000000e-01, 7.905694097e-02, 2.500000037e-02, 7.905694656e-03,
                      2.499999944e-03, 7.905694656e-04, 2.500000119e-04, 7.905694656e-05});
  RopeConfig llama3 = make(Kind::kLlama3);
  llama3.theta = 500000;
  expect_frequencies(llama3, 10,
                     {1.000000000e+00, 4.848068953e-02, 9.401507676e-03, 1.823166269e-03,
                      3.535533615e-04, 6.856204709e-05, 1.329573934e-05, 2.578346312e-06});
  RopeConfig yarn = make(Kind::kYarn);
  yarn.theta = 1e6;
  expect_frequencies(yarn, 10,
                     {1.000000000e+00, 4.445698485e-02, 7.905694656e-03, 1.405853312e-03,
                      2.500000119e-04, 4.445698505e-05, 7.905693565e-06, 1.405853368e-06});
  yarn.truncate = false;
  yarn.beta_fast = 16;
  yarn.beta_slow = 0.5;
  expect_frequencies(yarn, 10,
                     {1.000000000e+00, 7.859360427e-02, 7.905694656e-03, 1.405853312e-03,
                      2.500000119e-04, 4.445698505e-05, 7.905693565e-06, 1.405853368e-06});
  RopeConfig longrope = make(Kind::kLongrope);
  longrope.short_factor = {1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7};
  longrope.long_factor = {1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5};
  expect_frequencies(longrope, 32,
                     {1.000000000e+00, 2.874797583e-01, 8.333333582e-02, 2.432521433e-02,
                      7.142857183e-03, 2.108185319e-03, 6.249999860e-04, 1.860163320e-04});
  expect_frequencies(longrope, 33,
                     {1.000000000e+00, 2.108184993e-01, 5.000000075e-02, 1.264911145e-02,
                      3.333333414e-03, 9.035079274e-04, 2.500000119e-04, 7.027283573e-05});
}

TEST(Rope, LongropeTakesTheLongListOnlyBeyondTheOriginalLength) {
  RopeConfig rope = make(Kind::kLongrope);
  rope.short_factor = {1, 1, 1, 1};
  rope.long_factor = {2, 2, 2, 2};
  const at::Tensor at_limit = rope_inverse_frequencies(rope, 8, 32);
  const at::Tensor beyond = rope_inverse_frequencies(rope, 8, 33);
  EXPECT_TRUE(at::allclose(at_limit, 2 * beyond));
}

TEST(Rope, AttentionFactorFollowsTheKind) {
  EXPECT_EQ(rope_attention_factor(make(Kind::kDefault), 4096), 1.0);
  EXPECT_EQ(rope_attention_factor(make(Kind::kLlama3), 4096), 1.0);
  RopeConfig longrope = make(Kind::kLongrope);
  const double expected = std::sqrt(1 + std::log(4.0) / std::log(32.0));
  EXPECT_DOUBLE_EQ(rope_attention_factor(longrope, 4096), expected);
  longrope.factor = 1;  // not stated: the ratio of the context lengths
  EXPECT_DOUBLE_EQ(rope_attention_factor(longrope, 128), expected);
  EXPECT_EQ(rope_attention_factor(longrope, 32), 1.0);
  longrope.attention_factor = 1.5;
  EXPECT_EQ(rope_attention_factor(longrope, 128), 1.5);
  RopeConfig yarn = make(Kind::kYarn);
  EXPECT_DOUBLE_EQ(rope_attention_factor(yarn, 4096), 0.1 * std::log(4.0) + 1);
  yarn.mscale = 1;
  yarn.mscale_all_dim = 0.5;
  EXPECT_DOUBLE_EQ(rope_attention_factor(yarn, 4096),
                   (0.1 * std::log(4.0) + 1) / (0.05 * std::log(4.0) + 1));
}

TEST(Rope, TableHoldsCosineAndSineOfFp32AnglesTimesTheFactor) {
  RopeConfig rope = make(Kind::kYarn);
  const at::Tensor position = at::tensor({0, 1, 7, 131071}, at::kLong);
  const RopeTable table = rope_table(rope, 32, 128, position, 8);
  ASSERT_EQ(table.cos.sizes(), at::IntArrayRef({4, 16}));
  ASSERT_EQ(table.sin.scalar_type(), at::kFloat);
  const double factor = rope_attention_factor(rope, 128);
  const at::Tensor inv_freq = rope_inverse_frequencies(rope, 32, 8).to(at::kFloat);
  for (int64_t t = 0; t < 4; ++t) {
    for (int64_t i = 0; i < 16; ++i) {
      const float angle =
          static_cast<float>(position[t].item<int64_t>()) * inv_freq[i].item<float>();
      EXPECT_NEAR(table.cos[t][i].item<double>(), factor * std::cos(double{angle}), 1e-6);
      EXPECT_NEAR(table.sin[t][i].item<double>(), factor * std::sin(double{angle}), 1e-6);
    }
  }
}

TEST(Rope, EmptyPositionsGiveAnEmptyTable) {
  const RopeTable table = rope_table(RopeConfig{}, 64, 128, at::zeros({0}, at::kLong), 0);
  EXPECT_EQ(table.cos.sizes(), at::IntArrayRef({0, 32}));
}

}  // namespace
}  // namespace sala
