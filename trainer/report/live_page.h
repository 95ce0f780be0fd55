// RUN/report.html of a run that goes on.
#pragma once

#include <chrono>
#include <string>

#include "trainer/journal/metrics.h"
#include "trainer/report/report.h"

namespace sala {

// Rank 0's. That the page cannot be written is said once and stops nothing.
class LivePage {
 public:
  // `metrics` outlives it.
  LivePage(const std::string& run_folder, Metrics& metrics)
      : report_(run_folder), metrics_(metrics) {}

  // After a step: when the last page is a minute old.
  void refresh();
  // After what the page shows: a stage, an evaluation, the end. `alive`: the run goes on.
  void write(bool alive);

 private:
  Report report_;
  Metrics& metrics_;
  std::chrono::steady_clock::time_point written_;
  bool failed_ = false;
};

}  // namespace sala
