// sala-bench: every op alone and the lightning mixer as a whole, at many sizes, compared with what
// the device does at best.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <vector>

namespace sala {

// Of --serve, which measures whole models instead of ops (serve.h).
struct ServeOptions {
  bool on = false;
  std::vector<int64_t> batches;  // empty: 1 and 16
  int64_t layers = 0;            // 0: 32 on CUDA, 4 on a CPU
  int64_t chunk = 16384;         // tokens of a prefill's pass
  int64_t steps = 32;            // decode steps that are timed
  double most_gib = 0;           // of the device's memory; 0: all
  double most_seconds = 300;     // a prefill that is expected to take longer is left out
};

struct BenchOptions {
  std::string device;            // cpu or cuda; empty = cuda where there is one
  std::string dtype;             // bf16 or fp32; empty = bf16 on CUDA, fp32 on a CPU
  std::vector<std::string> ops;  // empty = all
  // 0 or empty: sizes of an 8B model on CUDA, small ones on a CPU (bench_defaults).
  std::vector<int64_t> tokens, heads;
  int64_t head_size = 0, width = 0, ffn = 0, vocab = 0;
  int64_t documents = 1;   // the tokens are so many documents of equal length
  std::string lists_file;  // of sala-inspect --lists: instead of ops (lists.h)
  int64_t kv_heads = 0;    // with it: how many of the file's, 0 = all; with serve: of the source
  int64_t repeats = 0;     // calls per measurement, at most
  std::string json_file;
  ServeOptions serve;
};

// What stands for options that are not given.
BenchOptions bench_defaults(bool cuda);
std::vector<std::string> bench_op_names();

struct BenchOp;
struct BenchShape;
class BenchReport;

// One line of the table. An op that needs too much memory or refuses the shape is reported as
// skipped, with the reason: the rest of the table is still wanted.
void measure_op(const BenchOp& op, const BenchShape& shape, int64_t repeats, BenchReport& report);

// Prints the table while it measures. Options that make no sense: std::runtime_error.
void run_bench(const BenchOptions& options);

}  // namespace sala
