// Runs that begin with another run's checkpoint, and exports outside the recipe.
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/runs/toy_run.h"

namespace sala::test {

TEST(Fork, BeginsWithTheCheckpointAndGoesOnWhenStartedAgain) {
  ToyRun toy;
  ASSERT_EQ(toy.run("whole", 1), 0) << toy.log("whole");
  const std::string from = " --from " + toy.checkpoint_of("whole", "distill");
  const std::string change = " --set stages.train.lr=5e-4";
  ASSERT_EQ(toy.run("fork", 1, from + change), 0) << toy.log("fork");
  const auto whole = toy.events("whole", "step"), fork = toy.events("fork", "step");
  ASSERT_EQ(whole.size(), 60u);
  ASSERT_EQ(fork.size(), 40u);  // distill and train
  EXPECT_EQ(fork[0].at("loss"), whole[20].at("loss"));
  EXPECT_NE(fork[39].at("loss"), whole[59].at("loss"));
  EXPECT_EQ(toy.run("fork", 1, from + change), 0) << "the same command again has nothing to do";
  EXPECT_NE(toy.run("fork", 1, " --from " + toy.checkpoint_of("whole", "train")), 0);
  // A recipe without the checkpoint's stage begins at its first, which must not convert again.
  EXPECT_NE(toy.run("again", 1, from + " --set stages.distill.name=other"), 0);
  EXPECT_NE(toy.log("again").find("holds a converted model"), std::string::npos);
}

TEST(Export, FromAnyCheckpointOfTheRun) {
  ToyRun toy;
  ASSERT_EQ(toy.run("run", 1), 0) << toy.log("run");
  const std::string folder = toy.folder() + "/after_distill";
  ASSERT_EQ(
      toy.run("run", 1, "--export " + folder + " --from " + toy.checkpoint_of("run", "train")), 0)
      << toy.log("run");
  EXPECT_TRUE(std::filesystem::exists(folder + "/model.safetensors"));
  EXPECT_TRUE(std::filesystem::exists(folder + "/config.json"));
}

}  // namespace sala::test
