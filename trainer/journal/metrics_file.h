// RUN/metrics.jsonl: whole lines of JSON, appended; durable where a checkpoint says so.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "data/files/file_calls.h"

namespace sala {

class MetricsFile {
 public:
  // Cuts the file to its first `num_bytes`, or to its last whole line before them: a continued run
  // repeats no line, and what a power loss left behind them goes.
  MetricsFile(const std::string& path, int64_t num_bytes);

  // Adds a line. Never throws: the first error is kept and nothing more is written after it, so
  // that the file holds whole lines and the caller's ranks can stop together.
  void append(const nlohmann::json& line);
  const std::string& error() const { return error_; }  // empty: all is well
  void sync();                                         // as append
  int64_t size() const { return size_; }

 private:
  Descriptor file_;
  int64_t size_ = 0;
  std::string error_;
};

// Whether the metrics of a run folder tell of a checkpoint that was saved.
bool tells_of_checkpoints(const std::string& path);
// Or that it began as a fork of another run.
bool tells_of_fork(const std::string& path);

}  // namespace sala
