// What a run tells: RUN/metrics.jsonl (one JSON object a line) for programs, the console for
// people. Rank 0 writes; other ranks' objects do nothing.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "trainer/journal/console.h"
#include "trainer/journal/metrics_file.h"

namespace sala {

class Metrics {
 public:
  // metrics.jsonl is cut at `resume_at_bytes` first, so that a continued run does not repeat lines
  // (the checkpoint stores size()).
  Metrics(const std::string& run_folder, bool writes, int64_t resume_at_bytes);
  // Nothing but the terminal, of rank 0: for what is no run (trainer/evaluation/alone.h).
  static std::unique_ptr<Metrics> on_terminal(bool speaks);
  // Adds "time" (seconds since the epoch) and writes one line. Does not throw where it cannot: the
  // ranks look at failed() where they meet, and stop together by check().
  void event(nlohmann::json line);
  void sync();  // what was written is durable; as event() where it cannot
  bool failed() const { return file_ && !file_->error().empty(); }
  void check() const;  // throws what event() or sync() met first
  // `later_flops`: of the stages after this one, all ranks together, by the plan.
  void begin_stage(size_t number, size_t count, double later_flops);
  void progress(Progress progress);
  void note(const std::string& text);                         // a plain line for people
  int64_t size() const { return file_ ? file_->size() : 0; }  // bytes of metrics.jsonl

 private:
  std::string path_;
  bool writes_ = false;
  std::optional<MetricsFile> file_;  // on rank 0
  std::unique_ptr<Console> console_;
  double later_flops_ = 0;
};

}  // namespace sala
