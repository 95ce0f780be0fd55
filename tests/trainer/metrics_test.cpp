// metrics.jsonl: whole lines, cut back where a run resumes.
#include "trainer/journal/metrics.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <sstream>

#include "data/files/atomic_file.h"
#include "tests/trainer/checkpoint_state.h"

namespace sala {
namespace {

std::vector<nlohmann::json> lines_in(const std::string& folder) {
  std::istringstream text(read_text_file(folder + "/metrics.jsonl"));
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

TEST(Metrics, EveryEventIsOneLineWithATime) {
  const ScratchFolder run = scratch("metrics_lines");
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
  const ScratchFolder run = scratch("metrics_resume");
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
  const ScratchFolder run = scratch("metrics_torn");
  std::ofstream(run.path + "/metrics.jsonl") << "{\"step\":1}\n{\"step\":2";
  Metrics appended(run.path, true, 1 << 20);
  appended.event({{"step", 2}});
  EXPECT_EQ(lines_in(run.path).size(), 2u);
  Metrics longer(run.path, true, 1 << 20);  // the file is shorter than the checkpoint says
  longer.event({{"step", 3}});
  EXPECT_EQ(lines_in(run.path).size(), 3u);
}

// Sizes around the blocks in which the end is looked for.
TEST(Metrics, ZerosOfAPowerLossAreCutOff) {
  const ScratchFolder run = scratch("metrics_zeros");
  const std::string path = run.path + "/metrics.jsonl";
  const std::string line = "{\"step\":1}\n";
  for (const int64_t zeros : {1, 65535, 65536, 20 << 20}) {
    for (const std::string& before : {std::string(), line, line + "{\"st"}) {
      std::ofstream(path) << before;
      std::filesystem::resize_file(path, before.size() + static_cast<size_t>(zeros));
      const MetricsFile file(path, int64_t{1} << 40);
      EXPECT_EQ(read_text_file(path), before.substr(0, before.empty() ? 0 : line.size())) << zeros;
    }
  }
}

TEST(Metrics, OtherRanksWriteNothing) {
  const ScratchFolder run = scratch("metrics_quiet");
  Metrics metrics(run.path, false, 0);
  metrics.event({{"step", 1}});
  metrics.progress({.stage = "train", .step = 1, .num_steps = 1});
  metrics.note("nothing");
  EXPECT_EQ(metrics.size(), 0);
  EXPECT_TRUE(std::filesystem::is_empty(run.path));
}

TEST(Metrics, PlainProgressIsThinnedButTheLastLineAlwaysComes) {
  const ScratchFolder run = scratch("metrics_progress");
  Metrics metrics(run.path, true, 0);
  metrics.begin_stage(3, 8, 3.6e15);
  testing::internal::CaptureStdout();
  for (int64_t step = 1; step <= 1000; ++step) {
    metrics.progress({.stage = "distill",
                      .step = step,
                      .num_steps = 1000,
                      .loss = 1.25,
                      .lr = 5.3e-4,
                      .grad_norm = 0.82,
                      .tokens_per_second = 12'345,
                      .flops_per_second = 1e12,
                      .mfu = 0.4,
                      .memory_bytes = 3e9,
                      .seconds_left = 3600});
  }
  const std::string text = testing::internal::GetCapturedStdout();
  const auto count = std::count(text.begin(), text.end(), '\n');
  EXPECT_GE(count, 2);
  EXPECT_LE(count, 10);
  const std::string line =
      "[3/8] distill 1000/1000  loss 1.2500  lr 5.3e-04  grad 0.82  12.3K tokens/s  MFU 40.0%  "
      "2.8 GiB  1h00m left  run ~2h00m\n";
  EXPECT_NE(text.find(line), std::string::npos) << text;
  EXPECT_EQ(text.find('\033'), std::string::npos) << "colour codes in a pipe: " << text;
  EXPECT_NE(read_text_file(run.path + "/run.log").find(line), std::string::npos);
}

TEST(Console, AProgressLineFitsItsTerminal) {
  const Progress progress{.stage = "distill",
                          .step = 120,
                          .num_steps = 256,
                          .loss = 2.3456,
                          .lr = 5.3e-4,
                          .grad_norm = 0.82,
                          .tokens_per_second = 208'500,
                          .mfu = 0.279,
                          .memory_bytes = 27e9,
                          .seconds_left = 192,
                          .run_seconds_left = 720};
  EXPECT_EQ(progress_text(progress, "[4/8] ", 119),
            "[4/8] distill 120/256  loss 2.3456  lr 5.3e-04  grad 0.82  208.5K tokens/s  "
            "MFU 27.9%  3m12s left  run ~12m00s");
  EXPECT_EQ(progress_text(progress, "[4/8] ", 79),
            "[4/8] distill 120/256  loss 2.3456  208.5K tokens/s  3m12s left  run ~12m00s");
  EXPECT_EQ(progress_text(progress, "[4/8] ", 10), "[4/8] dist");
  const Progress needles{.stage = "after", .unit = "needles", .step = 5, .num_steps = 75};
  EXPECT_EQ(progress_text(needles, "", 0), "after 5/75 needles");
}

TEST(Metrics, AFifoAsLogIsNotWaitedFor) {
  const ScratchFolder run = scratch("metrics_fifo");
  ASSERT_EQ(mkfifo((run.path + "/run.log").c_str(), 0600), 0);
  EXPECT_THROW(Metrics(run.path, true, 0), std::runtime_error);
}

TEST(Metrics, AFolderThatIsNotThereIsNamed) {
  EXPECT_THROW(Metrics("/nonexistent/run", true, 0), std::runtime_error);
}

}  // namespace
}  // namespace sala
