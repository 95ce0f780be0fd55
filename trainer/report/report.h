// RUN/report.html: the run as a page for people, made from what the run folder records, written
// again as the run goes on.
#pragma once

#include <string>

#include "trainer/charts/numbers.h"
#include "trainer/report/metrics_reader.h"
#include "trainer/report/record.h"

namespace sala {

// Reads metrics.jsonl on from where the last look ended, so that a page costs about the same at
// every step of a long run.
class Report {
 public:
  explicit Report(const std::string& run_folder);

  // Reads what is new and replaces RUN/report.html, whole or not at all. `alive`: 1 where a process
  // works on the run, 0 where none does, nothing where that is not known. Throws std::runtime_error
  // with one line; a file of this name that was not made by us, or was edited since, is left alone.
  void write(Maybe alive);
  // The same without an error: what went wrong, empty when nothing did.
  std::string try_to_write(Maybe alive) noexcept;

  const Record& record() const { return record_; }

 private:
  std::string folder_;
  MetricsReader reader_;
  Record record_;
};

}  // namespace sala
