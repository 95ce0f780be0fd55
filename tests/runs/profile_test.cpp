// `--profile N`: traces of every rank and stage, a table in the log, and the run as it was.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "tests/runs/toy_run.h"

namespace sala::test {

TEST(Profile, RecordsStepsOfEveryStageOnEveryRank) {
  ToyRun toy;
  ASSERT_EQ(toy.run("profiled", 2, "--profile 2"), 0) << toy.log("profiled");
  for (const char* stage : {"align", "distill", "train"}) {
    for (int rank : {0, 1}) {
      std::stringstream path, text;
      path << toy.run_folder("profiled") << "/profile/" << stage << "-rank" << rank << ".json";
      text << std::ifstream(path.str()).rdbuf();
      const nlohmann::json trace = nlohmann::json::parse(text.str(), nullptr, false);
      ASSERT_TRUE(trace.is_object()) << path.str();
      bool has_range = false;
      for (const auto& event : trace.at("traceEvents")) {
        has_range = has_range || event.value("name", "") == "lightning mixer backward";
      }
      EXPECT_TRUE(has_range) << path.str();
    }
  }
  const std::string log = toy.log("profiled");
  for (const char* range : {"lightning mixer", "feed-forward backward", "optimizer"}) {
    EXPECT_NE(log.find(range), std::string::npos) << range;
  }
  ASSERT_EQ(toy.run("plain", 2), 0) << toy.log("plain");
  EXPECT_EQ(toy.events("profiled", "step"), toy.events("plain", "step"));
}

}  // namespace sala::test
