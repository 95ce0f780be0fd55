// What sala-bench prints and writes: the machine, then a table that grows by a line per
// measurement; the same as JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "trainer/bench/op.h"
#include "trainer/bench/timer.h"
#include "trainer/lists/unions.h"

namespace sala {

// What the device does at best, measured: everything else is compared with it.
struct BenchMachine {
  std::string device;
  at::ScalarType dtype = at::kFloat;
  int64_t gemm_size = 0;        // n of an (n, n) by (n, n) product
  double copy_bytes_per_s = 0;  // read + written
  double gemm_flops_per_s = 0;
};

// At once, for whoever watches.
void print_line(const std::string& text);

class BenchReport {
 public:
  // `json_file`: empty, or where to keep the report as JSON, rewritten after each line.
  BenchReport(const BenchMachine& machine, std::string json_file);

  void row(const BenchOp& op, const BenchShape& shape, const BenchTime& time);
  void skipped(const BenchOp& op, const BenchShape& shape, const std::string& reason);
  // Sizes that an op is not measured at.
  void left_out(const BenchOp& op, const std::vector<int64_t>& tokens);
  // What the block lists have in common that an op of this name was measured on.
  void lists(const std::string& name, const ListFacts& facts);

 private:
  void save() const;

  BenchMachine machine_;
  std::string json_file_;
  nlohmann::json json_;
};

}  // namespace sala
