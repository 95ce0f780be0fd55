// Lines of a metrics.jsonl that are new since the last look, as JSON objects.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

namespace sala {

class MetricsReader {
 public:
  explicit MetricsReader(std::string path) : path_(std::move(path)) {}

  // Gives each new whole line to `take`; a last one without its end waits for the next look. A line
  // that is no JSON object is counted and passed over: what people edit must not hide the rest.
  // NaN and Infinity, which JSON does not have but other writers give, become null. Throws where
  // there is a file that cannot be read; none is an empty one.
  void read(const std::function<void(nlohmann::json&& line)>& take);
  int64_t num_unreadable() const { return num_unreadable_; }

 private:
  std::string path_;
  int64_t offset_ = 0;  // of the first byte that was not taken
  int64_t num_unreadable_ = 0;
};

// What a line says; a discarded value where it is no JSON. Norms of single tensors, most of a long
// run's bytes, are left out.
nlohmann::json parse_metrics_line(std::string line);

}  // namespace sala
