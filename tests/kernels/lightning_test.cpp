// Lightning attention: chunked form against the recurrence, gradients, documents, carried states.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/kernels/lightning_cases.h"

namespace sala::test {
namespace {

const std::vector<DocumentCase> kCases = {
    {{0}, 1},         {{0}, 3},
    {{0}, 63},        {{0}, 64},
    {{0}, 65},        {{0}, 200},
    {{0, 1}, 2},      {{0, 1, 2, 3}, 70},
    {{0, 64}, 128},   {{0, 60, 61, 130, 131, 195}, 200},
    {{0, 600}, 1300}, {{0, 500, 501}, 513},
};

class Lightning : public LightningInPlace {};
class LightningDocuments : public LightningInPlace {};

TEST_P(Lightning, EqualsTheRecurrenceForAllDocumentLayouts) {
  for (const DocumentCase& c : kCases) {
    for (const bool states : {false, true}) compare(c, 32, lightning_slopes(3), states);
  }
}

TEST_P(Lightning, EqualsTheRecurrenceForAllHeads) {
  compare({{0, 70}, 150}, 64, lightning_slopes(9), true);
  compare({{0, 70}, 150}, 32, lightning_slopes(6), true);
  compare({{0, 70}, 150}, 128, lightning_slopes(1), true);
  compare({{0, 70}, 150}, 128, lightning_slopes(4), false);
}

TEST_P(Lightning, StatesMayComeWithoutGradientsAndGradientsWithoutStates) {
  const DocumentCase c{{0, 30, 700}, 900};
  for (const bool with_initial : {false, true}) {
    LightningInputs x = inputs(c.num_tokens, 3, 3, 32, true);
    (with_initial ? x.d_final : x.initial) = at::Tensor();
    expect_backward(x, c, lightning_slopes(3), 0.2);
  }
}

TEST_P(Lightning, StatesOfSomeDocumentsAreZeroForTheOthers) {
  expect_few_states_are_padded_with_zeros({{0, 30, 700}, 900}, 32);
  expect_few_states_are_padded_with_zeros({{0, 1}, 2}, 32);
  const LightningInputs x = inputs(70, 3, 2, 32, true);
  const Documents docs = DocumentCase{{0, 20}, 70}.on(device());
  EXPECT_THROW(lightning_forward(x.q, x.k, x.v, lightning_slopes(2), docs, 1, x.initial),
               c10::Error);
  EXPECT_THROW(lightning_backward(x.g, x.q, x.k, x.v, lightning_slopes(2), docs, 1, {}, x.d_final),
               c10::Error);
}

TEST_P(Lightning, TwoCallsWithACarriedStateEqualOne) {
  expect_two_calls_equal_one(700, 32, lightning_slopes(3), {1, 64, 100, 640});
}

TEST_P(Lightning, DecodingTokenByTokenEqualsPrefill) {
  const int64_t length = 70, D = 2;  // two sequences decoded side by side
  const LightningInputs x = inputs(D * length, D, 6, 32, false);
  const at::Tensor slopes = lightning_slopes(6);
  const auto [o, state] = lightning_forward(
      x.q, x.k, x.v, slopes, Documents::from_starts({0, length}, D * length, device()), 0.2);
  const Documents step = Documents::from_starts({0, 1}, D, device());
  at::Tensor kept;
  std::vector<at::Tensor> rows;
  for (int64_t t = 0; t < length; ++t) {
    const auto token = [&](const at::Tensor& all) { return at::stack({all[t], all[length + t]}); };
    const auto [o_step, next] =
        lightning_forward(token(x.q), token(x.k), token(x.v), slopes, step, 0.2, kept);
    rows.push_back(o_step);
    kept = next;
  }
  const at::Tensor decoded = at::stack(rows).transpose(0, 1).reshape(o.sizes());
  EXPECT_TRUE(close(decoded, exact(o), limit()));
  EXPECT_TRUE(close(kept, exact(state), limit()));
}

TEST_P(Lightning, RunningTwiceGivesTheSameBits) { expect_same_bits_twice({{0, 77}, 600}, 32); }

TEST_P(Lightning, WhatIsNotFiniteStaysInItsDocument) { expect_not_finite_stays(32, 0); }

INSTANTIATE_TEST_SUITE_P(Places, Lightning, all_places(), place_name);

TEST_P(LightningDocuments, DoNotChangeEachOther) { expect_documents_apart(32); }

INSTANTIATE_TEST_SUITE_P(Places, LightningDocuments, ::testing::Values(Place{at::kCPU, at::kFloat}),
                         place_name);

TEST(LightningCpu, GradientsAgreeWithFiniteDifferences) {
  at::manual_seed(4);
  const int64_t NH = 3, HS = 8;
  const DocumentCase c{{0, 1, 70}, 600};
  const Documents docs = c.on(at::kCPU);
  const at::Tensor slopes = lightning_slopes(NH);
  const auto rows = [&] { return at::randn({c.num_tokens, NH, HS}, at::kDouble); };
  const at::Tensor q = rows(), k = rows(), v = rows(), g = rows();
  const at::Tensor initial = at::randn({3, NH, HS, HS}, at::kDouble);
  const at::Tensor d_final = at::randn({3, NH, HS, HS}, at::kDouble);
  const auto loss = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const at::Tensor& initial) {
    const auto [o, state] = lightning_forward(q, k, v, slopes, docs, 0.3, initial);
    return ((o * g).sum() + (state * d_final).sum()).item<double>();
  };
  const auto [dq, dk, dv, d_initial] =
      lightning_backward(g, q, k, v, slopes, docs, 0.3, initial, d_final);
  expect_gradient([&](const at::Tensor& x) { return loss(x, k, v, initial); }, q, dq, "dq");
  expect_gradient([&](const at::Tensor& x) { return loss(q, x, v, initial); }, k, dk, "dk");
  expect_gradient([&](const at::Tensor& x) { return loss(q, k, x, initial); }, v, dv, "dv");
  expect_gradient([&](const at::Tensor& x) { return loss(q, k, v, x); }, initial, d_initial,
                  "d_initial_state");
}

TEST(LightningCpu, TheFastestHeadsNeitherOverflowNorLoseTheLastToken) {
  // Slope 5: exp(+5 * 64) would be infinite in fp32; exp(-5 * 64) is denormal.
  const at::Tensor slopes = at::full({1}, 5.0, at::kDouble);
  at::manual_seed(5);
  const at::Tensor q = at::randn({200, 1, 32}), k = at::randn({200, 1, 32});
  const at::Tensor v = at::randn({200, 1, 32});
  const Documents docs = Documents::single(200, at::kCPU);
  EXPECT_TRUE(close(std::get<0>(lightning_forward(q, k, v, slopes, docs, 1.0)),
                    std::get<0>(lightning_forward_twin(q, k, v, slopes, docs, 1.0))));
  const auto chunked = lightning_backward(q, q, k, v, slopes, docs, 1.0);
  const auto twin = lightning_backward_twin(q, q, k, v, slopes, docs, 1.0);
  EXPECT_TRUE(close(std::get<1>(chunked), std::get<1>(twin)));
}

TEST(LightningSlopes, FollowTheRuleForAnyNumberOfHeads) {
  const at::Tensor four = lightning_slopes(4), six = lightning_slopes(6);
  const double expected_four[] = {0.25, 0.0625, 0.015625, 0.00390625};
  for (int h = 0; h < 4; ++h) {
    EXPECT_DOUBLE_EQ(four[h].item<double>(), expected_four[h]);
    EXPECT_DOUBLE_EQ(six[h].item<double>(), expected_four[h]);
  }
  EXPECT_DOUBLE_EQ(six[4].item<double>(), 0.5);    // entry 0 of the list for eight heads
  EXPECT_DOUBLE_EQ(six[5].item<double>(), 0.125);  // entry 2
  EXPECT_DOUBLE_EQ(lightning_slopes(32)[31].item<double>(), 0.00390625);
  EXPECT_EQ(lightning_slopes(9).size(0), 9);
  EXPECT_DOUBLE_EQ(lightning_slopes(9)[8].item<double>(), std::exp2(-0.5));
}

}  // namespace
}  // namespace sala::test
