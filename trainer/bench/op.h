// What sala-bench measures: one entry per op and pass. An entry states the fewest bytes that the
// op must move and its FLOPs, and makes fresh inputs; adding an op is adding one entry to the table
// of its file.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "kernels/documents.h"
#include "kernels/ops.h"

namespace sala {

struct BenchShape {
  int64_t tokens = 0, documents = 1;  // equal documents, packed
  int64_t before = 0;  // tokens of the one document before these, whose keys they see
  int64_t heads = 0, head_size = 0;
  int64_t kv_heads = 0;  // 0: one for up to 16 heads, as in MiniCPM-SALA
  SparseConfig sparse = {};
  int64_t width = 0, ffn = 0, vocab = 0;
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;

  int64_t num_kv_heads() const;
  // Elements of (T, NH, HS), of (T, n), and bytes of one element, as doubles: no overflow at 1M
  // tokens.
  double head_values() const { return double(tokens) * double(heads) * double(head_size); }
  double rows(int64_t n) const { return double(tokens) * double(n); }
  double element_bytes() const { return double(c10::elementSize(dtype)); }

  // Standard normal values of the benchmark's type on its device.
  at::Tensor normal(at::IntArrayRef sizes) const;
  at::Tensor normal_heads() const { return normal({tokens, heads, head_size}); }
  at::TensorOptions wide() const { return at::TensorOptions(device).dtype(at::kFloat); }
  Documents packed() const;
};

using BenchTensors = std::vector<at::Tensor>;
// One call on inputs that it owns; returns what it allocated, so that the caller decides when those
// buffers are used again.
using BenchRun = std::function<BenchTensors()>;

// What the time depends on, so that nothing is measured twice: tokens and heads, tokens, neither.
enum class BenchSweep { kHeads, kTokens, kOnce };

struct BenchOp {
  std::string name;
  std::string pass;  // fwd, bwd (dx or dW: one of a product's two), fwd+bwd or step
  BenchSweep sweep = BenchSweep::kTokens;
  std::function<std::string(const BenchShape&)> shape;
  std::function<double(const BenchShape&)> bytes;  // read + written if each is touched once
  std::function<double(const BenchShape&)> flops;  // empty: bytes are all that matters
  std::function<BenchRun(const BenchShape&)> prepare;
  int64_t max_tokens = std::numeric_limits<int64_t>::max();  // longer says nothing new, or for ever
  bool one_token_documents = false;  // each token is a document, whatever the options say
};

// Serves both passes of an op as BenchOp::prepare, from one function that is told which.
template <auto Run, bool kBackward>
BenchRun prepare_run(const BenchShape& s) {
  return Run(s, kBackward);
}

// All entries, in the order of the table.
std::vector<BenchOp> bench_ops();
// Their parts, each in bench_<part>.cpp.
std::vector<BenchOp> elementwise_bench_ops();
std::vector<BenchOp> attention_bench_ops();
std::vector<BenchOp> select_bench_ops();
std::vector<BenchOp> sparse_bench_ops();
std::vector<BenchOp> decode_bench_ops();
std::vector<BenchOp> mixer_bench_ops();
std::vector<BenchOp> product_bench_ops();
std::vector<BenchOp> training_bench_ops();

// "128K x 32 x 128".
std::string shape_text(std::initializer_list<int64_t> sizes);
std::string head_shape_text(const BenchShape& shape);
// The same with the KV heads: "8K x 32/2 x 128".
std::string kv_shape_text(const BenchShape& shape);

}  // namespace sala
