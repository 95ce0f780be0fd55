// What counts as a spike of loss or gradient.
#include "trainer/stages/spike_watch.h"

#include <gtest/gtest.h>

#include <cmath>

namespace sala {
namespace {

double noise(int i) { return 0.1 * std::sin(12.9 * i); }

SpikeWatch after(int num_steps) {
  SpikeWatch watch;
  for (int i = 0; i < num_steps; ++i) {
    EXPECT_EQ(watch.add(3 + noise(i), 0.5 + noise(i)), "") << i;
  }
  return watch;
}

TEST(SpikeWatch, SeesALossAndAGradientFarOutsideTheirBands) {
  EXPECT_EQ(after(40).add(3.5, 0.6), "");
  EXPECT_EQ(after(40).add(7, 0.5).rfind("loss 7 (the band of the last 40 steps ends at ", 0), 0u);
  EXPECT_EQ(after(200).add(3, 50).rfind("gradient norm 50 (the band of the last 64 steps", 0), 0u);
  const std::string both = after(40).add(7, 50);
  EXPECT_NE(both.find("loss 7"), std::string::npos);
  EXPECT_NE(both.find(", gradient norm 50"), std::string::npos);
}

TEST(SpikeWatch, NeedsBothTheDeviationsAndTheDouble) {
  SpikeWatch flat, wide;
  for (int i = 0; i < 40; ++i) {
    flat.add(1, 1);  // no deviation at all
    wide.add(i % 2 == 0 ? 1 : 3, 1);
  }
  EXPECT_EQ(flat.add(1.9, 1), "");
  EXPECT_NE(flat.add(2.1, 1), "");
  EXPECT_EQ(wide.add(12, 1), "");
}

TEST(SpikeWatch, TheFirstStepsOfAStageAreNone) {
  EXPECT_EQ(after(15).add(100, 100), "");
  EXPECT_NE(after(16).add(100, 100), "");
}

TEST(SpikeWatch, AChangeThatLastsIsNoSpikeForLong) {
  SpikeWatch watch = after(64);
  int num_spikes = 0;
  for (int i = 0; i < 64; ++i) num_spikes += watch.add(9 + noise(i), 0.5).empty() ? 0 : 1;
  EXPECT_GT(num_spikes, 1);
  EXPECT_LE(num_spikes, 33);
}

TEST(SpikeWatch, GoesOnFromItsState) {
  SpikeWatch watch = after(50), again;
  again.restore(nlohmann::json::parse(watch.state().dump()));
  EXPECT_EQ(watch.add(8, 9), again.add(8, 9));
  EXPECT_EQ(watch.state(), again.state());
}

}  // namespace
}  // namespace sala
