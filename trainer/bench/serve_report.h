// What sala-bench --serve prints and writes.
#pragma once

#include <string>
#include <vector>

#include "trainer/bench/bench.h"

namespace sala {

struct ServeRow {
  std::string model;
  int64_t batch = 0, tokens = 0;
  double first_token_s = 0, step_s = 0;  // 0: not measured
  double cache_bytes = 0;
  std::string note = {};  // why not
};

class ServeReport {
 public:
  ServeReport(const std::string& device, const BenchOptions& options);
  void row(const ServeRow& row);
  // How many times faster `fast` is than `slow`, where both were measured.
  void gains(const std::string& slow, const std::string& fast);

 private:
  void save() const;

  const BenchOptions& options_;
  std::string device_;
  std::vector<ServeRow> rows_;
};

}  // namespace sala
