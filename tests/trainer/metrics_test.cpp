// metrics.jsonl: whole lines, cut back where a run resumes.
#include "trainer/metrics.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <sstream>

#include "data/atomic_file.h"
#include "tests/trainer/checkpoint_state.h"

namespace sala {
namespace {

ScratchFolder scratch(const std::string& name) {
  return ScratchFolder(testing::TempDir() + "sala_metrics_" + name + std::to_string(getpid()));
}

std::vector<nlohmann::json> lines_in(const std::string& folder) {
  std::istringstream text(read_text_file(folder + "/metrics.jsonl"));
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

TEST(Metrics, EveryEventIsOneLineWithATime) {
  const ScratchFolder run = scratch("lines");
  Metrics metrics(run.path, true, 0);
  EXPECT_EQ(metrics.size(), 0);
  metrics.event({{"event", "step"}, {"loss", 2.5}});
  metrics.event({{"event", "note"}, {"text", "two\nlines \xff"}});
  metrics.event({{"event", "step"}, {"loss", std::nan("")}});
  const auto lines = lines_in(run.path);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0].at("loss"), 2.5);
  EXPECT_GT(lines[0].at("time").get<double>(), 1.6e9);
  EXPECT_TRUE(lines[2].at("loss").is_null());
  EXPECT_EQ(metrics.size(),
            static_cast<int64_t>(std::filesystem::file_size(run.path + "/metrics.jsonl")));
}

TEST(Metrics, AContinuedRunDoesNotRepeatLines) {
  const ScratchFolder run = scratch("resume");
  int64_t at_checkpoint = 0;
  {
    Metrics metrics(run.path, true, 0);
    for (int step = 0; step < 5; ++step) {
      metrics.event({{"step", step}});
      if (step == 2) at_checkpoint = metrics.size();
    }
  }
  Metrics resumed(run.path, true, at_checkpoint);
  EXPECT_EQ(resumed.size(), at_checkpoint);
  resumed.event({{"step", 3}});
  const auto lines = lines_in(run.path);
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_EQ(lines[3].at("step"), 3);
}

TEST(Metrics, ATornLastLineIsCutOff) {
  const ScratchFolder run = scratch("torn");
  std::ofstream(run.path + "/metrics.jsonl") << "{\"step\":1}\n{\"step\":2";
  Metrics appended(run.path, true, 1 << 20);
  appended.event({{"step", 2}});
  EXPECT_EQ(lines_in(run.path).size(), 2u);
  Metrics longer(run.path, true, 1 << 20);  // the file is shorter than the checkpoint says
  longer.event({{"step", 3}});
  EXPECT_EQ(lines_in(run.path).size(), 3u);
}

TEST(Metrics, OtherRanksWriteNothing) {
  const ScratchFolder run = scratch("quiet");
  Metrics metrics(run.path, false, 0);
  metrics.event({{"step", 1}});
  metrics.progress({"train", 1, 1});
  metrics.note("nothing");
  EXPECT_EQ(metrics.size(), 0);
  EXPECT_TRUE(std::filesystem::is_empty(run.path));
}

TEST(Metrics, PlainProgressIsThinnedButTheLastLineAlwaysComes) {
  const ScratchFolder run = scratch("progress");
  Metrics metrics(run.path, true, 0);
  testing::internal::CaptureStdout();
  for (int64_t step = 1; step <= 1000; ++step) {
    metrics.progress({"distill", step, 1000, 1.25, 12'345, 0.4, 3e9, 3600});
  }
  const std::string text = testing::internal::GetCapturedStdout();
  const auto count = std::count(text.begin(), text.end(), '\n');
  EXPECT_GE(count, 2);
  EXPECT_LE(count, 10);
  EXPECT_NE(text.find("distill  1000/1000  loss 1.2500  12.3K tokens/s  MFU 40.0%  2.8 GiB  "
                      "1h00m left\n"),
            std::string::npos)
      << text;
}

TEST(Metrics, AFolderThatIsNotThereIsNamed) {
  EXPECT_THROW(Metrics("/nonexistent/run", true, 0), std::runtime_error);
}

}  // namespace
}  // namespace sala
