// A stage's losses: what counts as divergence, what as a worse end.
#include "trainer/stages/loss_watch.h"

#include <gtest/gtest.h>

#include <cmath>

namespace sala {
namespace {

LossWatch after(const std::vector<double>& losses) {
  LossWatch watch;
  for (double loss : losses) watch.add(loss);
  return watch;
}

TEST(LossWatch, ADestroyedModelIsSeenAtItsFourthStep) {
  EXPECT_FALSE(after({2.7, 10.4, 11.8}).diverged());
  EXPECT_TRUE(after({2.7, 10.4, 11.8, 36.6}).diverged());
  EXPECT_TRUE(after({5, 20, 100, 489}).diverged());
}

TEST(LossWatch, SpikesAndRisingNoiseAreNoDivergence) {
  EXPECT_FALSE(after({2.7, 2.6, 30, 28, 2.6, 31, 2.5}).diverged());
  EXPECT_FALSE(after({0.02, 0.03, 0.5, 0.7, 0.9, 1.0}).diverged());  // a KL near 0 may double
  EXPECT_FALSE(after({9, 8, 7, 6, 5}).diverged());
}

TEST(LossWatch, DivergenceLateInAStageIsHeldToItsBeginning) {
  std::vector<double> losses(200);
  for (size_t i = 0; i < losses.size(); ++i) losses[i] = 3 + 2 * std::exp(-0.05 * double(i));
  losses.insert(losses.end(), {12, 13, 14});
  EXPECT_TRUE(after(losses).diverged());
}

TEST(LossWatch, AWorseEndIsToldFromNoise) {
  std::vector<double> flat, rising, falling;
  for (int i = 0; i < 60; ++i) {
    const double noise = 0.1 * std::sin(12.9 * i);
    flat.push_back(3 + noise);
    rising.push_back(3 + 0.01 * i + noise);
    falling.push_back(3 - 0.01 * i + noise);
  }
  EXPECT_FALSE(after(flat).compare()->worse);
  EXPECT_FALSE(after(falling).compare()->worse);
  const auto worse = after(rising).compare();
  EXPECT_TRUE(worse->worse);
  EXPECT_NEAR(worse->began, 3.05, 0.1);
  EXPECT_NEAR(worse->ended, 3.55, 0.1);
}

TEST(LossWatch, AModelDestroyedAtOnceIsHeldToWhatItWas) {
  std::vector<double> recovering = {2.7, 10.4, 11.8, 36.6, 30, 24, 20, 17, 15, 13};
  for (int i = 0; i < 60; ++i) recovering.push_back(6 + 6 * std::exp(-0.1 * i) + 0.1 * (i % 3));
  const auto compared = after(recovering).compare();
  EXPECT_TRUE(compared->worse);
  EXPECT_EQ(compared->began, 2.7);
  EXPECT_NEAR(compared->ended, 6.1, 0.1);
  EXPECT_TRUE(after({5, 489, 300, 410, 395, 350, 420, 380}).compare()->worse);
  EXPECT_TRUE(after({5, 125, 285, 401, 319, 241, 195, 169, 144, 125, 113, 105}).compare()->worse);
  for (double& loss : recovering) loss = std::min(loss, 3.0);  // a spike of the first steps only
  recovering.insert(recovering.end(), {2.7, 2.6, 2.8, 2.7, 2.5, 2.7, 2.6, 2.8, 2.6, 2.7});
  EXPECT_FALSE(after(recovering).compare()->worse);
}

TEST(LossWatch, ShortStagesCompareHalves) {
  EXPECT_FALSE(after({3, 9, 27}).compare().has_value());
  EXPECT_TRUE(after({3, 3.1, 27, 28}).compare()->worse);
  EXPECT_FALSE(after({3, 9, 3, 9}).compare()->worse);
}

TEST(LossWatch, ARestoredOneGoesOnAlike) {
  LossWatch whole, second;
  for (int i = 0; i < 30; ++i) whole.add(i < 25 ? 3 : 12);
  LossWatch first;
  for (int i = 0; i < 27; ++i) first.add(i < 25 ? 3 : 12);
  second.restore(nlohmann::json::parse(first.state().dump()));
  EXPECT_FALSE(second.diverged());
  for (int i = 27; i < 30; ++i) second.add(12);
  EXPECT_TRUE(second.diverged());
  EXPECT_EQ(second.state(), whole.state());
}

}  // namespace
}  // namespace sala
