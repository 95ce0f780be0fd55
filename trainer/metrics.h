// What a run tells: RUN/metrics.jsonl (one JSON object a line) for programs, the console for people.
// Rank 0 writes; other ranks' objects do nothing.
#pragma once

#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "trainer/console.h"

namespace sala {

class Metrics {
 public:
  // `resume_at_bytes`: metrics.jsonl is cut there first, so that a continued run does not repeat
  // lines (the checkpoint stores size()); -1 = append to what is there.
  Metrics(const std::string& run_folder, bool writes, int64_t resume_at_bytes);
  // Adds "time" (seconds since the epoch) and writes one line, flushed.
  void event(nlohmann::json line);
  // `later_flops`: of the stages after this one, all ranks together, by the plan.
  void begin_stage(size_t number, size_t count, double later_flops);
  void progress(Progress progress);
  void note(const std::string& text);  // a plain line for people
  int64_t size() const;                // bytes of metrics.jsonl

 private:
  std::string path_;
  bool writes_ = false;
  std::ofstream file_;
  std::unique_ptr<Console> console_;
  double later_flops_ = 0;
};

}  // namespace sala
