// sala-bench: a feed-forward matrix (F, C) times tokens, in the benchmark's type and in FP8, with
// rounding its operands and without; forward (T, C) to (T, F), and the gradient of the input back.
#include "kernels/fp8.h"
#include "trainer/bench/op.h"

namespace sala {

namespace {

constexpr int64_t kMostTokens = 32 << 10;  // longer is the same

std::string product_text(const BenchShape& s) { return shape_text({s.tokens, s.width, s.ffn}); }
std::string activation_text(const BenchShape& s) { return shape_text({s.tokens, s.ffn}); }
std::string weight_text(const BenchShape& s) { return shape_text({s.ffn, s.width}); }

double weights(const BenchShape& s) { return double(s.ffn) * double(s.width); }
double flops(const BenchShape& s) { return 2 * s.rows(s.width) * double(s.ffn); }

// Both sides and the weights once.
double product_bytes(const BenchShape& s) {
  return (s.rows(s.width) + s.rows(s.ffn) + weights(s)) * s.element_bytes();
}

// FP8 operands are a byte each; forward.
double fp8_product_bytes(const BenchShape& s) {
  return s.rows(s.width) + weights(s) + s.rows(s.ffn) * s.element_bytes();
}

double activation_bytes(const BenchShape& s) { return s.rows(s.ffn) * (s.element_bytes() + 1); }
double weight_bytes(const BenchShape& s) { return weights(s) * (s.element_bytes() + 1); }

// The input of the product, and the weights (F, C).
struct Operands {
  at::Tensor x, w;

  Operands(const BenchShape& s, bool backward)
      : x(s.normal({s.tokens, backward ? s.ffn : s.width})), w(s.normal({s.ffn, s.width})) {}
};

BenchRun linear_run(const BenchShape& s, bool backward) {
  const Operands in(s, backward);
  return [=]() -> BenchTensors { return {at::mm(in.x, backward ? in.w : in.w.t())}; };
}

BenchRun fp8_linear_run(const BenchShape& s, bool backward) {
  const Operands in(s, backward);
  return [=]() -> BenchTensors {
    const Fp8Rows x = fp8_rows(in.x), w = backward ? fp8_columns(in.w) : fp8_rows(in.w);
    return {fp8_product(x, w, in.x.scalar_type(), Fp8Sum::kExact), x.values, w.values};
  };
}

template <Fp8Sum kSum>
BenchRun fp8_product_run(const BenchShape& s, bool backward) {
  const Operands in(s, backward);
  const Fp8Rows x = fp8_rows(in.x), w = backward ? fp8_columns(in.w) : fp8_rows(in.w);
  return [=]() -> BenchTensors { return {fp8_product(x, w, s.dtype, kSum)}; };
}

BenchRun fp8_rows_run(const BenchShape& s) {
  const at::Tensor x = s.normal({s.tokens, s.ffn});
  return [=]() -> BenchTensors { return {fp8_rows(x).values}; };
}

BenchRun fp8_columns_run(const BenchShape& s) {
  const at::Tensor w = s.normal({s.ffn, s.width});
  return [=]() -> BenchTensors { return {fp8_columns(w).values}; };
}

template <auto Run>
void add_product(std::vector<BenchOp>& ops, const std::string& name,
                 double (*bytes)(const BenchShape&)) {
  const auto kTokens = BenchSweep::kTokens;
  ops.push_back(
      {name, "fwd", kTokens, product_text, bytes, flops, prepare_run<Run, false>, kMostTokens});
  ops.push_back(
      {name, "bwd", kTokens, product_text, bytes, flops, prepare_run<Run, true>, kMostTokens});
}

}  // namespace

std::vector<BenchOp> product_bench_ops() {
  std::vector<BenchOp> ops;
  add_product<linear_run>(ops, "linear", product_bytes);
  add_product<fp8_linear_run>(ops, "fp8_linear", product_bytes);
  add_product<fp8_product_run<Fp8Sum::kExact>>(ops, "fp8_product", fp8_product_bytes);
  add_product<fp8_product_run<Fp8Sum::kFast>>(ops, "fp8_fast_product", fp8_product_bytes);
  ops.push_back({"fp8_rows",
                 "fwd",
                 BenchSweep::kTokens,
                 activation_text,
                 activation_bytes,
                 {},
                 fp8_rows_run,
                 kMostTokens});
  ops.push_back(
      {"fp8_columns", "fwd", BenchSweep::kOnce, weight_text, weight_bytes, {}, fp8_columns_run});
  return ops;
}

}  // namespace sala
