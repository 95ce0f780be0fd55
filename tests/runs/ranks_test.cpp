// The number of ranks changes nothing but speed.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/runs/toy_run.h"

namespace sala::test {

namespace {

void expect_falling(const std::vector<nlohmann::json>& steps, const std::string& stage) {
  std::vector<double> losses;
  for (const auto& e : steps) {
    if (e.at("stage") == stage) losses.push_back(e.at("loss"));
  }
  ASSERT_EQ(losses.size(), 20u);
  EXPECT_LT(losses[17] + losses[18] + losses[19], losses[0] + losses[1] + losses[2]) << stage;
}

}  // namespace

TEST(Ranks, OneTwoAndFourGiveTheSameLosses) {
  ToyRun toy;
  for (int ranks : {1, 2, 4}) {
    const std::string name = std::to_string(ranks) + "_ranks";
    ASSERT_EQ(toy.run(name, ranks), 0) << toy.log(name);
  }
  const auto one = toy.events("1_ranks", "step");
  ASSERT_EQ(one.size(), 60u);  // 20 steps of align, distill and train
  for (const char* stage : {"align", "distill", "train"}) expect_falling(one, stage);
  for (const char* name : {"2_ranks", "4_ranks"}) {
    const auto other = toy.events(name, "step");
    ASSERT_EQ(other.size(), one.size());
    for (size_t i = 0; i < one.size(); ++i) {
      const double a = one[i].at("loss"), b = other[i].at("loss");
      EXPECT_LE(std::abs(a - b), 1e-5 * std::abs(a))
          << name << " " << one[i].at("stage") << " step " << one[i].at("step");
    }
    const auto measured = toy.events("1_ranks", "evaluate"), again = toy.events(name, "evaluate");
    ASSERT_EQ(measured.size(), again.size());
    for (size_t i = 0; i < measured.size(); ++i) {
      const double a = measured[i].at("sources").at("a").at("loss");
      EXPECT_NEAR(a, again[i].at("sources").at("a").at("loss").get<double>(), 1e-5 * a);
      EXPECT_EQ(measured[i].at("needles"), again[i].at("needles"));
    }
    EXPECT_EQ(toy.events(name, "swap").at(0).at("kept"),
              toy.events("1_ranks", "swap").at(0).at("kept"));
  }
}

}  // namespace sala::test
