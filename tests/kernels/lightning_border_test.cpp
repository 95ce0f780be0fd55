// States and gradients at the border of a run of tokens: against the loops, against what the op
// with outputs leaves and sends, cut at every place that matters.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/kernels/lightning_cases.h"

namespace sala::test {
namespace {

class LightningBorder : public LightningInPlace {
 protected:
  void expect_border(int64_t T, int64_t cut, int64_t HS, const at::Tensor& slopes) {
    SCOPED_TRACE(::testing::Message()
                 << "T " << T << ", cut " << cut << ", heads " << slopes.size(0) << " x " << HS);
    const LightningInputs x = inputs(T, 1, slopes.size(0), HS, false);
    const at::Tensor state = lightning_end_state(x.k, x.v, slopes, cut);
    EXPECT_TRUE(
        close(state, lightning_end_state_twin(exact(x.k), exact(x.v), slopes, cut), limit()));
    const at::Tensor gradient = lightning_start_gradient(x.q, x.g, slopes, T - cut, 0.3);
    EXPECT_TRUE(close(gradient,
                      lightning_start_gradient_twin(exact(x.q), exact(x.g), slopes, T - cut, 0.3),
                      limit()));
    EXPECT_EQ(state.scalar_type(), GetParam().dtype == at::kDouble ? at::kDouble : at::kFloat);

    // The ops with outputs say the same.
    const auto run = [&](const at::Tensor& t, int64_t begin) {
      return t.narrow(0, begin, T - cut);
    };
    const Documents docs = Documents::single(T - cut, device());
    const auto [o, left] =
        lightning_forward(run(x.q, cut), run(x.k, cut), run(x.v, cut), slopes, docs, 0.3);
    EXPECT_TRUE(close(state, exact(left[0]), limit()));
    const at::Tensor zero = at::zeros_like(left);
    const auto gradients = lightning_backward(run(x.g, 0), run(x.q, 0), run(x.k, 0), run(x.v, 0),
                                              slopes, docs, 0.3, zero);
    EXPECT_TRUE(close(gradient, exact(std::get<3>(gradients)[0]), limit()));

    EXPECT_TRUE(bit_equal(state, lightning_end_state(x.k, x.v, slopes, cut)));
    EXPECT_TRUE(bit_equal(gradient, lightning_start_gradient(x.q, x.g, slopes, T - cut, 0.3)));
  }
};

TEST_P(LightningBorder, EqualsTheLoopsAndTheOps) {
  for (const auto& [T, cut] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 0}, {2, 1}, {65, 0}, {65, 64}, {511, 3}, {512, 0}, {513, 0}, {1300, 77}}) {
    expect_border(T, cut, 32, lightning_slopes(3));
  }
  expect_border(1100, 5, 32, lightning_slopes(9));
  for (const double factor : {0.0, 1e-3, 30.0}) {
    expect_border(1100, 5, 64, lightning_slopes(4) * factor);
  }
}

TEST_P(LightningBorder, RunsLongerThanAPieceAndThanTheDecay) {
  expect_border(9000, 2, 16, lightning_slopes(2));
  expect_border(9000, 2, 16, lightning_slopes(12) * 0.1);
}

TEST_P(LightningBorder, WhatIsNotOfTheRunIsNotRead) {
  const at::Tensor slopes = lightning_slopes(3);
  const LightningInputs x = inputs(200, 1, 3, 16, false);
  const at::Tensor state = lightning_end_state(x.k, x.v, slopes, 70);
  const at::Tensor gradient = lightning_start_gradient(x.q, x.g, slopes, 130, 0.3);
  for (const at::Tensor& t : {x.k, x.v}) t.narrow(0, 0, 70).fill_(NAN);
  for (const at::Tensor& t : {x.q, x.g}) t.narrow(0, 130, 70).fill_(NAN);
  EXPECT_TRUE(bit_equal(lightning_end_state(x.k, x.v, slopes, 70), state));
  EXPECT_TRUE(bit_equal(lightning_start_gradient(x.q, x.g, slopes, 130, 0.3), gradient));
}

INSTANTIATE_TEST_SUITE_P(Places, LightningBorder, all_places(), place_name);

TEST(LightningBorderDoor, RefusesARunThatIsNotThere) {
  const at::Tensor x = at::randn({4, 2, 8}), slopes = lightning_slopes(2);
  EXPECT_NO_THROW(lightning_end_state(x, x, slopes, 3));
  EXPECT_THROW(lightning_end_state(x, x, slopes, 4), c10::Error);
  EXPECT_THROW(lightning_end_state(x, x, slopes, -1), c10::Error);
  EXPECT_THROW(lightning_start_gradient(x, x, slopes, 0, 1), c10::Error);
  EXPECT_THROW(lightning_start_gradient(x, x, slopes, 5, 1), c10::Error);
  EXPECT_THROW(lightning_start_gradient(x, x, slopes, 4, 0), c10::Error);
  EXPECT_THROW(lightning_end_state(x, x, lightning_slopes(3), 0), c10::Error);
}

}  // namespace
}  // namespace sala::test
