// What people see while a run goes on: one progress line that renews itself on a terminal, lines
// with their time otherwise, and all of it in RUN/run.log. Rank 0 only.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace spdlog {
class logger;
}

namespace sala {

struct Progress {
  std::string stage = "";  // its name
  std::string unit = "";   // what is counted when it is not training steps: "rows of books"
  int64_t step = 0, num_steps = 0;
  std::optional<double> loss = std::nullopt, lr = std::nullopt, grad_norm = std::nullopt;
  double tokens_per_second = 0;  // all ranks; 0 = none
  double flops_per_second = 0;   // all ranks; 0 = unknown
  double mfu = -1;               // causal FLOPs / peak; < 0 = unknown peak
  double memory_bytes = 0;       // of this rank, at most so far; 0 = unknown
  double seconds_left = -1;      // of what is counted; < 0 = unknown
  double run_seconds_left = -1;  // of all stages, from the plan's FLOPs at this stage's speed
};

// "[4/8] distill 120/256  loss 2.3456  lr 5.3e-04  ..." cut to `columns` by leaving out what
// matters least first; columns 0 = no limit. `place`: "[4/8] " or empty.
std::string progress_text(const Progress& progress, const std::string& place, size_t columns);

// Time left of `total` equal items, from the ones done since it was made.
class ItemClock {
 public:
  double seconds_left(int64_t done, int64_t total) const;

 private:
  std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
};

class Console {
 public:
  // Appends to the log at `log_path` (may be empty); spdlog's messages go there and to stdout.
  explicit Console(const std::string& log_path);
  ~Console();

  void begin_stage(size_t number, size_t count);  // 1-based, for the line's "[4/8]"
  // At most about ten a second on a terminal, one every few seconds otherwise; the last always.
  void progress(const Progress& progress);
  void note(const std::string& text);

 private:
  bool terminal_ = false, line_open_ = false;
  std::string place_;
  std::shared_ptr<spdlog::logger> log_;  // the file alone
  std::chrono::steady_clock::time_point shown_{}, logged_{};
};

}  // namespace sala
