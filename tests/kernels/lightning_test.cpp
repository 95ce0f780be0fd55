// Lightning attention: chunked form against the recurrence, gradients, documents, carried states.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/ops.h"
#include "kernels/twins_attention.h"
#include "tests/kernels/attention_cases.h"

namespace sala::testing {
namespace {

const std::vector<DocumentCase> kCases = {
    {{0}, 1},         {{0}, 3},
    {{0}, 63},        {{0}, 64},
    {{0}, 65},        {{0}, 200},
    {{0, 1}, 2},      {{0, 1, 2, 3}, 70},
    {{0, 64}, 128},   {{0, 60, 61, 130, 131, 195}, 200},
    {{0, 600}, 1300}, {{0, 500, 501}, 513},
};

struct Inputs {
  at::Tensor q, k, v, g, initial, d_final;
};

class Lightning : public OpInPlace {
 protected:
  Inputs inputs(int64_t T, int64_t D, int64_t NH, int64_t HS, bool states) const {
    Inputs x{
        random({T, NH, HS}), random({T, NH, HS}), random({T, NH, HS}), random({T, NH, HS}), {}, {}};
    if (states) {
      x.initial = random_wide({D, NH, HS, HS});
      x.d_final = random_wide({D, NH, HS, HS});
    }
    return x;
  }

  Tolerance limit() const {
    Tolerance t = tolerance(GetParam().dtype);
    if (GetParam().dtype == at::kBFloat16) t.relative_norm = 5e-3;
    return t;
  }

  void compare(const DocumentCase& c, int64_t NH, int64_t HS, bool states) {
    SCOPED_TRACE(::testing::Message() << "T " << c.num_tokens << ", documents " << c.starts.size()
                                      << ", heads " << NH << " x " << HS << ", states " << states);
    const Documents docs = c.on(device()), host = c.on(at::kCPU);
    const Inputs x = inputs(c.num_tokens, docs.count(), NH, HS, states);
    const at::Tensor slopes = lightning_slopes(NH);
    const double scale = 1 / std::sqrt(static_cast<double>(HS));
    const auto [o, state] = lightning_forward(x.q, x.k, x.v, slopes, docs, scale, x.initial);
    const auto [o_twin, state_twin] = lightning_forward_twin(exact(x.q), exact(x.k), exact(x.v),
                                                             slopes, host, scale, exact(x.initial));
    EXPECT_EQ(o.scalar_type(), GetParam().dtype);
    EXPECT_TRUE(close(o, o_twin, limit())) << "o";
    EXPECT_TRUE(close(state, state_twin, limit())) << "final_state";

    const auto [dq, dk, dv, d_initial] =
        lightning_backward(x.g, x.q, x.k, x.v, slopes, docs, scale, x.initial, x.d_final);
    const auto [dq_twin, dk_twin, dv_twin, d_initial_twin] =
        lightning_backward_twin(exact(x.g), exact(x.q), exact(x.k), exact(x.v), slopes, host, scale,
                                exact(x.initial), exact(x.d_final));
    EXPECT_TRUE(close(dq, dq_twin, limit())) << "dq";
    EXPECT_TRUE(close(dk, dk_twin, limit())) << "dk";
    EXPECT_TRUE(close(dv, dv_twin, limit())) << "dv";
    if (states) {
      EXPECT_TRUE(close(d_initial, d_initial_twin, limit())) << "d_initial_state";
    }
  }
};

TEST_P(Lightning, EqualsTheRecurrenceForAllDocumentLayouts) {
  for (const DocumentCase& c : kCases) {
    for (const bool states : {false, true}) compare(c, 3, 32, states);
  }
}

TEST_P(Lightning, EqualsTheRecurrenceForAllHeads) {
  compare({{0, 70}, 150}, 9, 64, true);
  compare({{0, 70}, 150}, 6, 32, true);
  compare({{0, 70}, 150}, 1, 128, true);
  compare({{0, 70}, 150}, 4, 128, false);
}

TEST_P(Lightning, StatesMayComeWithoutGradientsAndGradientsWithoutStates) {
  const DocumentCase c{{0, 30, 700}, 900};
  const Documents docs = c.on(device()), host = c.on(at::kCPU);
  const at::Tensor slopes = lightning_slopes(3);
  for (const bool with_initial : {false, true}) {
    Inputs x = inputs(c.num_tokens, docs.count(), 3, 32, true);
    (with_initial ? x.d_final : x.initial) = at::Tensor();
    const auto [dq, dk, dv, d_initial] =
        lightning_backward(x.g, x.q, x.k, x.v, slopes, docs, 0.2, x.initial, x.d_final);
    const auto twin =
        lightning_backward_twin(exact(x.g), exact(x.q), exact(x.k), exact(x.v), slopes, host, 0.2,
                                exact(x.initial), exact(x.d_final));
    EXPECT_TRUE(close(dq, std::get<0>(twin), limit()));
    EXPECT_TRUE(close(dk, std::get<1>(twin), limit()));
    EXPECT_TRUE(close(dv, std::get<2>(twin), limit()));
    EXPECT_EQ(d_initial.defined(), with_initial);
    if (with_initial) {
      EXPECT_TRUE(close(d_initial, std::get<3>(twin), limit()));
    }
  }
}

TEST_P(Lightning, TwoCallsWithACarriedStateEqualOne) {
  for (const int64_t cut : {1, 64, 100, 640}) {
    const int64_t T = 700;
    const Inputs x = inputs(T, 1, 3, 32, false);
    const at::Tensor slopes = lightning_slopes(3);
    const auto run = [&](int64_t begin, int64_t end, const at::Tensor& state) {
      return lightning_forward(x.q.slice(0, begin, end), x.k.slice(0, begin, end),
                               x.v.slice(0, begin, end), slopes,
                               Documents::single(end - begin, device()), 0.2, state);
    };
    const auto [o, state] = run(0, T, {});
    const auto [o_head, state_head] = run(0, cut, {});
    const auto [o_tail, state_tail] = run(cut, T, state_head);
    EXPECT_TRUE(close(at::cat({o_head, o_tail}), o, limit())) << cut;
    EXPECT_TRUE(close(state_tail, state, limit())) << cut;
  }
}

TEST_P(Lightning, DecodingTokenByTokenEqualsPrefill) {
  const int64_t length = 70, D = 2;  // two sequences decoded side by side
  const Inputs x = inputs(D * length, D, 6, 32, false);
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

TEST_P(Lightning, RunningTwiceGivesTheSameBits) {
  const DocumentCase c{{0, 77}, 600};
  const Documents docs = c.on(device());
  const Inputs x = inputs(c.num_tokens, 2, 3, 32, true);
  const at::Tensor slopes = lightning_slopes(3);
  const auto run = [&] {
    return lightning_backward(x.g, x.q, x.k, x.v, slopes, docs, 0.2, x.initial, x.d_final);
  };
  const auto a = run(), b = run();
  EXPECT_TRUE(bit_equal(std::get<0>(a), std::get<0>(b)));
  EXPECT_TRUE(bit_equal(std::get<1>(a), std::get<1>(b)));
  EXPECT_TRUE(bit_equal(std::get<2>(a), std::get<2>(b)));
  EXPECT_TRUE(bit_equal(std::get<3>(a), std::get<3>(b)));
}

INSTANTIATE_TEST_SUITE_P(Places, Lightning, all_places(), place_name);

TEST(LightningCpu, OneDocumentDoesNotChangeTheOthers) {
  at::manual_seed(3);
  const DocumentCase c{{0, 50, 130, 131, 640}, 700};
  const Documents docs = c.on(at::kCPU);
  const at::Tensor slopes = lightning_slopes(3);
  at::Tensor q = at::randn({700, 3, 32}), k = at::randn({700, 3, 32}), v = at::randn({700, 3, 32});
  const at::Tensor g = at::randn({700, 3, 32});
  const auto run = [&] {
    const auto [o, state] = lightning_forward(q, k, v, slopes, docs, 0.2);
    const auto [dq, dk, dv, none] = lightning_backward(g, q, k, v, slopes, docs, 0.2);
    return std::vector<at::Tensor>{o, dq, dk, dv};
  };
  const auto before = run();
  for (at::Tensor* x : {&q, &k, &v}) x->slice(0, 131, 640).mul_(-3).add_(1);
  const auto after = run();
  for (size_t i = 0; i < before.size(); ++i) {
    EXPECT_TRUE(bit_equal(before[i].slice(0, 0, 131), after[i].slice(0, 0, 131))) << i;
    EXPECT_TRUE(bit_equal(before[i].slice(0, 640), after[i].slice(0, 640))) << i;
    EXPECT_FALSE(at::equal(before[i], after[i])) << i;
  }
}

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
}  // namespace sala::testing
