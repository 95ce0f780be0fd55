// The cut teacher: ops against twins, gradient against differences and autograd, and what cutting
// must keep: the whole KL where nothing is cut, never more of it where something is.
#include "kernels/topk.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include <tuple>
#include <vector>

#include "kernels/check.h"
#include "kernels/twins/twins.h"
#include "kernels/vocabulary/chunks.h"
#include "tests/kernels/attention_cases.h"

namespace sala::test {
namespace {

struct TopkCase {
  at::Tensor x, w, x_teacher, w_teacher, targets, weight;

  VocabLoss loss(const TopkTeacher& teacher, const DistillConfig& config, at::Tensor* dx = nullptr,
                 const at::Tensor& d_w = {}) const {
    return linear_topk_kl(x, w, 0.7, teacher, targets, weight, config, dx, d_w);
  }
  TopkTeacher cut(int64_t k, double temperature = 1) const {
    return linear_topk(x_teacher, w_teacher, 1.1, temperature, k);
  }
};

TopkCase make_topk_case(int64_t T, int64_t C, int64_t V, at::ScalarType dtype, at::Device device) {
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

struct Sizes {
  int64_t T, C, V, k;
};
const std::vector<Sizes> kTopkSizes = {{1, 1, 2, 1},    {3, 17, 5, 5},     {17, 8, 101, 7},
                                       {33, 24, 64, 1}, {3, 8, 2051, 150}, {5, 8, 8200, 64}};
const std::vector<DistillConfig> kConfigs = {{1.0, 0.0}, {1.0, 0.4}, {2.0, 0.0}, {2.0, 0.3}};

class CutTeachers : public OpInPlace {
 protected:
  TopkCase inputs(const Sizes& s) const {
    return make_topk_case(s.T, s.C, s.V, GetParam().dtype, device());
  }
  at::Tensor zeros_wide(const at::Tensor& w) const {
    return at::zeros(w.sizes(), w.options().dtype(accumulate_type(w)));
  }
  Tolerance limit() const { return tolerance(GetParam().dtype); }
};

TEST_P(CutTeachers, HoldTheLikeliestAndTheMassOfTheOthers) {
  for (const Sizes& s : kTopkSizes) {
    SCOPED_TRACE(::testing::Message() << s.T << " x " << s.C << " x " << s.V << ", k " << s.k);
    const TopkCase c = inputs(s);
    const TopkTeacher cut = c.cut(s.k, 1.7);
    const TopkTeacher twin = linear_topk_twin(c.x_teacher, c.w_teacher, 1.1, 1.7, s.k);
    EXPECT_TRUE(close(cut.log_p, twin.log_p, limit()));
    EXPECT_TRUE(close(cut.log_tail.exp(), twin.log_tail.exp(), limit()));
    const at::Tensor mass = cut.log_p.exp().sum(1) + cut.log_tail.exp();
    EXPECT_TRUE(close(mass, at::ones_like(mass), tolerance(mass.scalar_type())));
    EXPECT_TRUE((cut.log_p.diff(1, 1) <= 0).all().item<bool>()) << "not sorted";
    // Ids of nearly equal logits may come in another order; their logits are compared above.
    const bool exact = GetParam().dtype == at::kDouble;
    EXPECT_TRUE(!exact || at::equal(cut.ids, twin.ids));
    const at::Tensor sorted = std::get<0>(cut.ids.sort(1));
    EXPECT_TRUE((sorted.diff(1, 1) > 0).all().item<bool>()) << "an id comes twice";
  }
}

TEST_P(CutTeachers, KlEqualsTwin) {
  for (const Sizes& s : kTopkSizes) {
    std::vector<DistillConfig> configs = kConfigs;
    const at::Tensor by_token = at::linspace(0, 1, s.T, at::device(device()).dtype(at::kFloat));
    for (const double temperature : {1.0, 2.0}) configs.push_back({temperature, 0, by_token});
    for (const DistillConfig& config : configs) {
      SCOPED_TRACE(::testing::Message()
                   << s.T << " x " << s.C << " x " << s.V << ", k " << s.k << ", temperature "
                   << config.temperature << ", ce_weight " << config.ce_weight
                   << (config.ce_weight_T.defined() ? ", by token" : ""));
      const TopkCase c = inputs(s);
      const TopkTeacher cut = c.cut(s.k, config.temperature);
      at::Tensor dx, dx_twin, d_w = zeros_wide(c.w), d_w_twin = zeros_wide(c.w).cpu();
      const auto loss = c.loss(cut, config, &dx, d_w);
      const auto twin =
          linear_topk_kl_twin(c.x, c.w, 0.7, cut, c.targets, c.weight, config, &dx_twin, d_w_twin);
      EXPECT_TRUE(close(loss.loss_T, twin.loss_T, limit())) << "loss";
      EXPECT_TRUE(close(loss.kl_T, twin.kl_T, limit())) << "kl";
      EXPECT_TRUE(close(loss.ce_T, twin.ce_T, limit())) << "ce";
      EXPECT_TRUE(close(loss.loss_sum, twin.loss_sum, limit())) << "sum";
      EXPECT_TRUE(close(dx, dx_twin, limit())) << "dx";
      EXPECT_TRUE(close(d_w, d_w_twin, limit())) << "d_w";
    }
  }
}

TEST_P(CutTeachers, OfTheWholeVocabularyAreWhole) {
  const TopkCase c = inputs({19, 8, 101, 0});
  for (const DistillConfig& config : kConfigs) {
    at::Tensor dx, dx_whole, d_w = zeros_wide(c.w), d_w_whole = zeros_wide(c.w);
    const auto cut = c.loss(c.cut(101, config.temperature), config, &dx, d_w);
    const auto whole = linear_kl(c.x, c.w, 0.7, c.x_teacher, c.w_teacher, 1.1, c.targets, c.weight,
                                 config, &dx_whole, d_w_whole);
    EXPECT_TRUE(close(cut.loss_T, whole.loss_T, limit()));
    EXPECT_TRUE(close(cut.ce_T, whole.ce_T, limit()));
    EXPECT_TRUE(close(dx, dx_whole, limit()));
    EXPECT_TRUE(close(d_w, d_w_whole, limit()));
  }
}

TEST_P(CutTeachers, TellLessTheMoreIsCut) {
  const TopkCase c = inputs({11, 8, 300, 0});
  at::Tensor before =
      linear_kl(c.x, c.w, 0.7, c.x_teacher, c.w_teacher, 1.1, {}, c.weight, {}).kl_T;
  const double rounding = 1e-5 * before.max().item<double>();
  for (int64_t k : {300, 299, 64, 8, 1}) {
    const at::Tensor kl = c.loss(c.cut(k), {}).kl_T;
    EXPECT_TRUE((kl <= before + rounding).all().item<bool>()) << k;
    EXPECT_TRUE((kl >= -rounding).all().item<bool>()) << k;
    before = kl;
  }
}

TEST_P(CutTeachers, AreBitEqualAndTheSameWithoutGradients) {
  const TopkCase c = inputs({19, 8, 4100, 0});
  const TopkTeacher cut = c.cut(64, 1.5), again = c.cut(64, 1.5);
  EXPECT_TRUE(at::equal(cut.ids, again.ids));
  EXPECT_TRUE(at::equal(cut.log_p, again.log_p));
  EXPECT_TRUE(at::equal(cut.log_tail, again.log_tail));
  at::Tensor dx, dx_again, d_w = zeros_wide(c.w), d_w_again = zeros_wide(c.w);
  const auto one = c.loss(cut, {1.5, 0.2}, &dx, d_w);
  const auto two = c.loss(again, {1.5, 0.2}, &dx_again, d_w_again);
  const auto losses_only = c.loss(cut, {1.5, 0.2});
  EXPECT_TRUE(at::equal(dx, dx_again));
  EXPECT_TRUE(at::equal(d_w, d_w_again));
  for (const VocabLoss* other : {&two, &losses_only}) {
    EXPECT_TRUE(at::equal(one.loss_T, other->loss_T));
    EXPECT_TRUE(at::equal(one.loss_sum, other->loss_sum));
  }
}

TEST_P(CutTeachers, WhatIsNotFiniteStaysInItsRow) {
  const TopkCase c = inputs({33, 24, 64, 0});
  const TopkTeacher cut = c.cut(5);
  TopkCase bad = c;
  bad.x = c.x.clone();
  bad.x[18].fill_(NAN);
  at::Tensor dx, dx_bad;
  const VocabLoss before = c.loss(cut, {}, &dx), after = bad.loss(cut, {}, &dx_bad);
  expect_stays_between(before.loss_T, after.loss_T, 18, 19);
  expect_stays_between(dx, dx_bad, 18, 19);
}

INSTANTIATE_TEST_SUITE_P(Places, CutTeachers, all_places(), place_name);

TEST(CutTeacherChunks, DoNotChangeLossesOrGradients) {
  at::manual_seed(3);
  const int64_t T = 37, V = 1 << 20;
  const TopkCase c = make_topk_case(T, 3, V, at::kFloat, at::kCPU);
  ASSERT_LT(vocab_chunk_tokens(c.w, T), T);
  const DistillConfig config{1.5, 0.2};
  const TopkTeacher cut = c.cut(9, 1.5);
  at::Tensor dx, d_w = at::zeros_like(c.w), sum = at::zeros_like(c.w);
  const auto whole = c.loss(cut, config, &dx, d_w);
  for (int64_t t = 0; t < T; ++t) {
    const auto at_t = [&](const at::Tensor& x) { return x.narrow(0, t, 1); };
    const TopkCase one{at_t(c.x),       c.w,           at_t(c.x_teacher), c.w_teacher,
                       at_t(c.targets), at_t(c.weight)};
    const TopkTeacher cut_t = one.cut(9, 1.5);
    EXPECT_TRUE(close(at_t(cut.log_p), cut_t.log_p));
    EXPECT_TRUE(close(at_t(cut.log_tail), cut_t.log_tail));
    at::Tensor dx_t;
    const auto loss =
        one.loss({at_t(cut.ids), at_t(cut.log_p), at_t(cut.log_tail)}, config, &dx_t, sum);
    EXPECT_TRUE(close(at_t(whole.loss_T), loss.loss_T));
    EXPECT_TRUE(close(at_t(dx), dx_t));
  }
  EXPECT_TRUE(close(d_w, sum));
}

TEST(CutTeacherGradient, IsTheFiniteDifference) {
  at::manual_seed(4);
  const TopkCase c = make_topk_case(6, 5, 13, at::kDouble, at::kCPU);
  for (const DistillConfig& config : kConfigs) {
    const TopkTeacher cut = c.cut(4, config.temperature);
    at::Tensor dx, d_w = at::zeros_like(c.w);
    c.loss(cut, config, &dx, d_w);
    const auto loss = [&](const at::Tensor& x, const at::Tensor& w) {
      TopkCase other = c;
      other.x = x;
      other.w = w;
      return other.loss(cut, config).loss_sum.item<double>();
    };
    expect_gradient([&](const at::Tensor& x) { return loss(x, c.w); }, c.x, dx, "dx");
    expect_gradient([&](const at::Tensor& w) { return loss(c.x, w); }, c.w, d_w, "d_w");
  }
}

TEST(CutTeacherGradient, IsAutograds) {
  at::manual_seed(5);
  const TopkCase c = make_topk_case(9, 6, 40, at::kDouble, at::kCPU);
  for (const DistillConfig& config : kConfigs) {
    const TopkTeacher cut = c.cut(7, config.temperature);
    at::Tensor dx, d_w = at::zeros_like(c.w);
    const auto written = c.loss(cut, config, &dx, d_w);
    const at::Tensor x = c.x.clone().requires_grad_(true), w = c.w.clone().requires_grad_(true);
    const at::Tensor z = at::mm(x, w.t()) * 0.7;
    const at::Tensor log_q = at::log_softmax(z / config.temperature, 1);
    const at::Tensor top = log_q.gather(1, cut.ids);
    const at::Tensor q_tail = log_q.exp().scatter(1, cut.ids, 0.0).sum(1);
    const at::Tensor kl = (cut.log_p.exp() * (cut.log_p - top)).sum(1) +
                          cut.log_tail.exp() * (cut.log_tail - q_tail.log());
    const at::Tensor ce = -at::log_softmax(z, 1).gather(1, c.targets.unsqueeze(1)).squeeze(1);
    const at::Tensor loss = (1 - config.ce_weight) * config.temperature * config.temperature * kl +
                            config.ce_weight * ce;
    const at::Tensor sum = (loss * c.weight).sum();
    sum.backward();
    EXPECT_TRUE(close(written.loss_sum, sum));
    EXPECT_TRUE(close(dx, x.grad()));
    EXPECT_TRUE(close(d_w, w.grad()));
  }
}

TEST(CutTeachersDoor, RefusesWhatItCannotUse) {
  const TopkCase c = make_topk_case(3, 4, 5, at::kFloat, at::kCPU);
  const TopkTeacher cut = c.cut(2);
  EXPECT_THROW(c.cut(0), c10::Error);
  EXPECT_THROW(c.cut(6), c10::Error);
  EXPECT_THROW(c.loss({cut.ids.to(at::kInt), cut.log_p, cut.log_tail}, {}), c10::Error);
  EXPECT_THROW(c.loss({cut.ids + 4, cut.log_p, cut.log_tail}, {}), c10::Error);
  EXPECT_THROW(c.loss({cut.ids, cut.log_p.to(at::kDouble), cut.log_tail}, {}), c10::Error);
  EXPECT_THROW(c.loss({cut.ids.narrow(0, 0, 2), cut.log_p, cut.log_tail}, {}), c10::Error);
  EXPECT_THROW(c.loss({}, {}), c10::Error);
}

}  // namespace
}  // namespace sala::test
