// The losses over the vocabulary: op against twin, gradients against differences, and independence
// of how the tokens fall into chunks.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "kernels/check.h"
#include "kernels/ops.h"
#include "kernels/twins/twins.h"
#include "kernels/vocabulary/chunks.h"
#include "tests/kernels/attention_cases.h"

namespace sala::test {
namespace {

struct Case {
  at::Tensor x, w, x_teacher, w_teacher, targets, weight;
};

Case make_case(int64_t T, int64_t C, int64_t V, at::ScalarType dtype, at::Device device) {
  const auto random = [&](at::IntArrayRef sizes) {
    return at::randn(sizes, at::kDouble).to(dtype).to(device);
  };
  const auto wide = dtype == at::kDouble ? at::kDouble : at::kFloat;
  at::Tensor weight = at::rand({T}, at::kDouble);
  weight.narrow(0, 0, T / 3).zero_();
  return {random({T, C}),
          random({V, C}).mul_(0.3),
          random({T, C + 2}),
          random({V, C + 2}).mul_(0.3),
          at::randint(V, {T}, at::kLong).to(device),
          weight.to(wide).to(device)};
}

class VocabLosses : public OpInPlace {
 protected:
  Case inputs(int64_t T, int64_t C, int64_t V) const {
    return make_case(T, C, V, GetParam().dtype, device());
  }
  at::Tensor zeros_wide(const at::Tensor& w) const {
    return at::zeros(w.sizes(), w.options().dtype(accumulate_type(w)));
  }
  // bf16 inputs: logit gradients are rounded to bf16 before the two products.
  Tolerance limit() const { return tolerance(GetParam().dtype); }
};

const std::vector<std::tuple<int64_t, int64_t, int64_t>> kSizes = {
    {1, 1, 2}, {3, 17, 5}, {17, 8, 101}, {33, 24, 64}, {3, 8, 2051}, {5, 8, 8200}};

TEST_P(VocabLosses, CrossEntropyEqualsTwin) {
  for (const auto& [T, C, V] : kSizes) {
    SCOPED_TRACE(::testing::Message() << T << " x " << C << " x " << V);
    const Case c = inputs(T, C, V);
    at::Tensor dx, dx_twin, d_w = zeros_wide(c.w), d_w_twin = zeros_wide(c.w).cpu();
    const auto loss = linear_cross_entropy(c.x, c.w, c.targets, c.weight, 0.7, &dx, d_w);
    const auto twin =
        linear_cross_entropy_twin(c.x, c.w, c.targets, c.weight, 0.7, &dx_twin, d_w_twin);
    EXPECT_TRUE(close(loss.loss_T, twin.loss_T, limit()));
    EXPECT_TRUE(close(loss.loss_sum, twin.loss_sum, limit()));
    EXPECT_TRUE(close(dx, dx_twin, limit())) << "dx";
    EXPECT_TRUE(close(d_w, d_w_twin, limit())) << "d_w";
  }
}

TEST_P(VocabLosses, KlEqualsTwin) {
  for (const auto& [T, C, V] : kSizes) {
    const at::Tensor by_token = at::linspace(0, 1, T, at::device(device()).dtype(at::kFloat));
    for (const DistillConfig& config :
         {DistillConfig{1.0, 0.0}, DistillConfig{2.0, 0.3}, DistillConfig{1.0, 0.3, by_token},
          DistillConfig{2.0, 0.3, by_token}}) {
      SCOPED_TRACE(::testing::Message()
                   << T << " x " << C << " x " << V << ", temperature " << config.temperature
                   << (config.ce_weight_T.defined() ? ", shares by token" : ""));
      const Case c = inputs(T, C, V);
      at::Tensor dx, dx_twin, d_w = zeros_wide(c.w), d_w_twin = zeros_wide(c.w).cpu();
      const auto loss = linear_kl(c.x, c.w, 0.7, c.x_teacher, c.w_teacher, 1.1, c.targets, c.weight,
                                  config, &dx, d_w);
      const auto twin = linear_kl_twin(c.x, c.w, 0.7, c.x_teacher, c.w_teacher, 1.1, c.targets,
                                       c.weight, config, &dx_twin, d_w_twin);
      EXPECT_TRUE(close(loss.loss_T, twin.loss_T, limit())) << "loss";
      EXPECT_TRUE(close(loss.kl_T, twin.kl_T, limit())) << "kl";
      EXPECT_TRUE(close(loss.ce_T, twin.ce_T, limit())) << "ce";
      EXPECT_TRUE(close(loss.loss_sum, twin.loss_sum, limit())) << "sum";
      EXPECT_TRUE(close(dx, dx_twin, limit())) << "dx";
      EXPECT_TRUE(close(d_w, d_w_twin, limit())) << "d_w";
    }
  }
}

TEST_P(VocabLosses, KlOfATeacherToItselfIsZero) {
  const Case c = inputs(7, 9, 31);
  at::Tensor dx;
  const auto loss = linear_kl(c.x, c.w, 0.7, c.x, c.w, 0.7, {}, c.weight, {}, &dx);
  EXPECT_LT(loss.loss_T.abs().max().item<double>(), 1e-6);
  EXPECT_LT(dx.abs().max().item<double>(), 1e-6);
  EXPECT_FALSE(loss.ce_T.defined());
}

TEST_P(VocabLosses, WeightGradientIsAddedAndLossIsFilledWhereTheWeightIsZero) {
  const Case c = inputs(9, 8, 21);
  at::Tensor dx, once = zeros_wide(c.w), twice = zeros_wide(c.w);
  const auto loss = linear_cross_entropy(c.x, c.w, c.targets, c.weight, 1, &dx, once);
  linear_cross_entropy(c.x, c.w, c.targets, c.weight, 1, &dx, twice);
  linear_cross_entropy(c.x, c.w, c.targets, c.weight, 1, &dx, twice);
  EXPECT_TRUE(close(twice, once * 2, tolerance(once.scalar_type())));
  EXPECT_GT(loss.loss_T.narrow(0, 0, 3).min().item<double>(), 0);
  EXPECT_EQ(dx.narrow(0, 0, 3).abs().max().item<double>(), 0);
}

TEST_P(VocabLosses, AreBitEqualAndTheSameWithoutGradients) {
  const Case c = inputs(19, 8, 4100);
  at::Tensor dx, dx_again, d_w = zeros_wide(c.w), d_w_again = zeros_wide(c.w);
  const auto run = [&](at::Tensor* gradient, const at::Tensor& weight_gradient) {
    return linear_kl(c.x, c.w, 0.7, c.x_teacher, c.w_teacher, 1.1, c.targets, c.weight, {1.5, 0.2},
                     gradient, weight_gradient);
  };
  const auto one = run(&dx, d_w), two = run(&dx_again, d_w_again), losses_only = run(nullptr, {});
  EXPECT_TRUE(at::equal(dx, dx_again));
  EXPECT_TRUE(at::equal(d_w, d_w_again));
  for (const VocabLoss* other : {&two, &losses_only}) {
    EXPECT_TRUE(at::equal(one.loss_T, other->loss_T));
    EXPECT_TRUE(at::equal(one.kl_T, other->kl_T));
    EXPECT_TRUE(at::equal(one.ce_T, other->ce_T));
    EXPECT_TRUE(at::equal(one.loss_sum, other->loss_sum));
  }
}

TEST_P(VocabLosses, ATargetOutsideTheVocabularyIsSeenInTheLoss) {
  const Case c = inputs(4, 8, 36);
  for (const int64_t target : {int64_t{-1}, int64_t{36}, int64_t{1} << 40}) {
    at::Tensor targets = c.targets.clone(), dx;
    targets[2] = target;
    if (device().is_cpu()) {
      EXPECT_THROW(linear_cross_entropy(c.x, c.w, targets, c.weight, 1, &dx), c10::Error);
      continue;
    }
    const auto ce = linear_cross_entropy(c.x, c.w, targets, c.weight, 1, &dx);
    const auto kl =
        linear_kl(c.x, c.w, 1, c.x_teacher, c.w_teacher, 1, targets, c.weight, {2.0, 0.1}, &dx);
    for (const VocabLoss* loss : {&ce, &kl}) {
      EXPECT_FALSE(std::isfinite(loss->loss_sum.item<double>()));
      EXPECT_TRUE(std::isfinite(loss->loss_T[1].item<double>()));
    }
  }
}

TEST_P(VocabLosses, RefuseATeacherOnAnotherDevice) {
  const Case c = inputs(3, 4, 5);
  const at::Device elsewhere = device().is_cpu() ? at::kMeta : at::kCPU;
  try {
    linear_kl(c.x, c.w, 1, c.x_teacher.to(elsewhere), c.w_teacher.to(elsewhere), 1, c.targets,
              c.weight, {});
    FAIL() << "a teacher on " << elsewhere << " was taken";
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find("expected the teacher on"), std::string::npos)
        << error.what();
  }
}

TEST_P(VocabLosses, WhatIsNotFiniteStaysInItsRow) {
  const Case c = inputs(33, 24, 64);
  Case bad = c;
  bad.x = c.x.clone();
  bad.x[18].fill_(NAN);
  const auto run = [](const Case& in) {
    at::Tensor dx, dx_kl;
    const VocabLoss ce = linear_cross_entropy(in.x, in.w, in.targets, in.weight, 0.7, &dx);
    const VocabLoss kl = linear_kl(in.x, in.w, 0.7, in.x_teacher, in.w_teacher, 0.9, in.targets,
                                   in.weight, DistillConfig{}, &dx_kl);
    return std::vector<at::Tensor>{ce.loss_T, dx, kl.loss_T, dx_kl};
  };
  const auto before = run(c), after = run(bad);
  for (size_t i = 0; i < before.size(); ++i) {
    SCOPED_TRACE(i);
    expect_stays_between(before[i], after[i], 18, 19);
  }
}

INSTANTIATE_TEST_SUITE_P(Places, VocabLosses, all_places(), place_name);

TEST(VocabLossesChunks, DoNotChangeLossesOrGradients) {
  // A vocabulary large enough for several chunks against one call per token.
  at::manual_seed(3);
  const int64_t T = 37, V = 1 << 20;
  const Case c = make_case(T, 3, V, at::kFloat, at::kCPU);
  ASSERT_LT(vocab_chunk_tokens(c.w, T), T);
  const DistillConfig config{1.5, 0, at::linspace(0, 1, T)};
  at::Tensor dx, dx_kl, d_w = at::zeros_like(c.w), d_w_kl = at::zeros_like(c.w);
  const auto ce = linear_cross_entropy(c.x, c.w, c.targets, c.weight, 1, &dx, d_w);
  const auto kl = linear_kl(c.x, c.w, 1, c.x_teacher, c.w_teacher, 1, c.targets, c.weight, config,
                            &dx_kl, d_w_kl);
  at::Tensor sum = at::zeros_like(c.w), sum_kl = at::zeros_like(c.w);
  for (int64_t t = 0; t < T; ++t) {
    const auto at_t = [&](const at::Tensor& x) { return x.narrow(0, t, 1); };
    at::Tensor dx_t, dx_kl_t;
    const DistillConfig config_t{1.5, 0, at_t(config.ce_weight_T)};
    const auto ce_t =
        linear_cross_entropy(at_t(c.x), c.w, at_t(c.targets), at_t(c.weight), 1, &dx_t, sum);
    const auto kl_t = linear_kl(at_t(c.x), c.w, 1, at_t(c.x_teacher), c.w_teacher, 1,
                                at_t(c.targets), at_t(c.weight), config_t, &dx_kl_t, sum_kl);
    EXPECT_TRUE(close(at_t(ce.loss_T), ce_t.loss_T));
    EXPECT_TRUE(close(at_t(kl.loss_T), kl_t.loss_T));
    EXPECT_TRUE(close(at_t(dx), dx_t));
    EXPECT_TRUE(close(at_t(dx_kl), dx_kl_t));
  }
  EXPECT_TRUE(close(d_w, sum));
  EXPECT_TRUE(close(d_w_kl, sum_kl));
}

TEST(VocabLossesGradient, IsTheFiniteDifference) {
  at::manual_seed(4);
  const Case c = make_case(6, 5, 13, at::kDouble, at::kCPU);
  const DistillConfig config{1.7, 0.4};
  at::Tensor dx, dx_kl, d_w = at::zeros_like(c.w), d_w_kl = at::zeros_like(c.w);
  const auto ce = [&](const at::Tensor& x, const at::Tensor& w) {
    return linear_cross_entropy(x, w, c.targets, c.weight, 0.6).loss_sum.item<double>();
  };
  const auto kl = [&](const at::Tensor& x, const at::Tensor& w) {
    return linear_kl(x, w, 0.6, c.x_teacher, c.w_teacher, 1, c.targets, c.weight, config)
        .loss_sum.item<double>();
  };
  linear_cross_entropy(c.x, c.w, c.targets, c.weight, 0.6, &dx, d_w);
  linear_kl(c.x, c.w, 0.6, c.x_teacher, c.w_teacher, 1, c.targets, c.weight, config, &dx_kl,
            d_w_kl);
  expect_gradient([&](const at::Tensor& x) { return ce(x, c.w); }, c.x, dx, "ce: dx");
  expect_gradient([&](const at::Tensor& w) { return ce(c.x, w); }, c.w, d_w, "ce: d_w");
  expect_gradient([&](const at::Tensor& x) { return kl(x, c.w); }, c.x, dx_kl, "kl: dx");
  expect_gradient([&](const at::Tensor& w) { return kl(c.x, w); }, c.w, d_w_kl, "kl: d_w");
}

TEST(VocabLossesDoor, RefusesSharesThatAreNone) {
  const Case c = make_case(3, 4, 5, at::kFloat, at::kCPU);
  const auto loss = [&](const at::Tensor& shares, const at::Tensor& targets) {
    return linear_kl(c.x, c.w, 1, c.x_teacher, c.w_teacher, 1, targets, c.weight, {1, 0, shares});
  };
  EXPECT_NO_THROW(loss(at::ones({3}), c.targets));
  EXPECT_THROW(loss(at::ones({2}), c.targets), c10::Error);
  EXPECT_THROW(loss(at::full({3}, 1.1), c.targets), c10::Error);
  EXPECT_THROW(loss(at::full({3}, -0.1), c.targets), c10::Error);
  EXPECT_THROW(loss(at::ones({3}, at::kLong), c.targets), c10::Error);
  EXPECT_THROW(loss(at::ones({3}), {}), c10::Error);
}

TEST(VocabLossesDoor, RefusesATargetOutsideTheVocabulary) {
  const Case c = make_case(3, 4, 5, at::kFloat, at::kCPU);
  EXPECT_THROW(linear_cross_entropy(c.x, c.w, at::full({3}, 5, at::kLong), c.weight, 1),
               c10::Error);
  EXPECT_THROW(linear_cross_entropy(c.x, c.w, at::full({3}, -1, at::kLong), c.weight, 1),
               c10::Error);
  EXPECT_THROW(linear_kl(c.x, c.w, 1, c.x_teacher, c.w_teacher, 1, {}, c.weight, {1.0, 0.5}),
               c10::Error);
}

}  // namespace
}  // namespace sala::test
