// What people see: RUN/metrics.jsonl (one JSON object a line), and one progress line on a terminal
// or plain lines otherwise. Rank 0 writes; other ranks' objects do nothing.
#pragma once

#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "trainer/metrics_file.h"

namespace sala {

struct Progress {
  std::string stage;
  int64_t step = 0, num_steps = 0;
  double loss = 0;
  double tokens_per_second = 0;  // all ranks
  double mfu = 0;                // causal FLOPs / peak; < 0 = unknown peak
  double memory_bytes = 0;       // of this rank, at most so far
  double seconds_left = 0;       // of the stage
};

class Metrics {
 public:
  // metrics.jsonl is cut at `resume_at_bytes` first, so that a continued run does not repeat lines
  // (the checkpoint stores size()).
  Metrics(const std::string& run_folder, bool writes, int64_t resume_at_bytes);
  // Adds "time" (seconds since the epoch) and writes one line. Does not throw where it cannot: the
  // ranks look at failed() where they meet, and stop together by check().
  void event(nlohmann::json line);
  void sync();  // what was written is durable; as event() where it cannot
  bool failed() const { return file_ && !file_->error().empty(); }
  void check() const;  // throws what event() or sync() met first
  // At most about ten a second on a terminal, one every few seconds otherwise; the last always.
  void progress(const Progress& progress);
  void note(const std::string& text);  // a plain line for people (through spdlog)
  int64_t size() const { return file_ ? file_->size() : 0; }  // bytes of metrics.jsonl

 private:
  std::string path_;
  bool writes_ = false, terminal_ = false;
  std::optional<MetricsFile> file_;  // on rank 0
  std::chrono::steady_clock::time_point last_{};
  bool line_open_ = false;
};

}  // namespace sala
