// What people see: RUN/metrics.jsonl (one JSON object a line), and one progress line on a terminal
// or plain lines otherwise. Rank 0 writes; other ranks' objects do nothing.
#pragma once

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

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
  // `resume_at_bytes`: metrics.jsonl is cut there first, so that a continued run does not repeat
  // lines (the checkpoint stores size()); -1 = append to what is there.
  Metrics(const std::string& run_folder, bool writes, int64_t resume_at_bytes);
  // Adds "time" (seconds since the epoch) and writes one line, flushed.
  void event(nlohmann::json line);
  // At most about ten a second on a terminal, one every few seconds otherwise; the last always.
  void progress(const Progress& progress);
  void note(const std::string& text);  // a plain line for people (through spdlog)
  int64_t size() const;                // bytes of metrics.jsonl

 private:
  std::string path_;
  bool writes_ = false, terminal_ = false;
  std::ofstream file_;
  std::chrono::steady_clock::time_point last_{};
  bool line_open_ = false;
};

}  // namespace sala
