// sala-bench: a feed-forward matrix (F, C) times tokens, in the benchmark's type and in FP8. linear
// and fp8_linear are what training calls, rounding of operands included; fp8_product and the rest
// take operands that are rounded. Passes: forward, (T, C) to (T, F); dx and dW, the gradients of
// the input and, added in fp32, of the matrix; bwd, both, with the gradient of the output rounded
// once.
#include "model/weights/products.h"

#include "trainer/bench/op.h"

namespace sala {

namespace {

constexpr int64_t kMostTokens = 32 << 10;  // longer is the same

enum class Pass { kForward, kInput, kWeight, kBackward };

const char* pass_name(Pass pass) {
  return pass == Pass::kForward  ? "fwd"
         : pass == Pass::kInput  ? "dx"
         : pass == Pass::kWeight ? "dW"
                                 : "bwd";
}

std::string product_text(const BenchShape& s) { return shape_text({s.tokens, s.width, s.ffn}); }
std::string activation_text(const BenchShape& s) { return shape_text({s.tokens, s.ffn}); }

double weights(const BenchShape& s) { return double(s.ffn) * double(s.width); }

template <Pass kPass>
double flops(const BenchShape& s) {
  return (kPass == Pass::kBackward ? 4 : 2) * s.rows(s.width) * double(s.ffn);
}

// Operands of `operand_bytes` an element, read once; the result; a sum in fp32 is read and written.
template <Pass kPass>
double bytes(const BenchShape& s, double operand_bytes) {
  const double x = s.rows(s.width), y = s.rows(s.ffn), w = weights(s);
  switch (kPass) {
    case Pass::kForward:
      return (x + w) * operand_bytes + y * s.element_bytes();
    case Pass::kInput:
      return (y + w) * operand_bytes + x * s.element_bytes();
    case Pass::kWeight:
      return (y + x) * operand_bytes + 8 * w;
    case Pass::kBackward:
      return (y + x + w) * operand_bytes + x * s.element_bytes() + 8 * w;
  }
  return 0;
}

template <Pass kPass>
double linear_bytes(const BenchShape& s) {
  return bytes<kPass>(s, s.element_bytes());
}
template <Pass kPass>
double fp8_bytes(const BenchShape& s) {
  return bytes<kPass>(s, 1);
}

// A part with one matrix, and its gradient where `trains`.
struct Held {
  Weights weights;
  Gradient gradient;

  Held(const BenchShape& s, bool trains) {
    Layout layout;
    layout.add("weight", {s.ffn, s.width}, true, Init::kNormal);
    weights = Weights(std::move(layout), s.dtype, s.device);
    weights.flat.normal_();
    if (!trains) return;
    gradient = Gradient(weights.layout_pointer(), at::zeros({weights.flat.numel()}, s.wide()),
                        std::vector<bool>{true});
  }
};

template <Pass kPass, bool kFp8>
BenchRun linear_run(const BenchShape& s) {
  const Matmul matmul{kFp8 ? kFp8Multiple : 0, kFp8};
  const at::Tensor x = s.normal({s.tokens, s.width});
  const auto held = std::make_shared<Held>(s, kPass == Pass::kWeight || kPass == Pass::kBackward);
  if (kPass == Pass::kForward) {
    return [=]() -> BenchTensors { return {linear_forward(matmul, x, held->weights["weight"])}; };
  }
  const at::Tensor dy = s.normal({s.tokens, s.ffn});
  return [=]() -> BenchTensors {
    return {linear_backward(matmul, dy, x, {held->weights, held->gradient, "weight", "weight"},
                            kPass != Pass::kWeight)};
  };
}

template <Pass kPass>
BenchRun fp8_product_run(const BenchShape& s) {
  const auto x = [&] { return s.normal({s.tokens, s.width}); };
  const auto dy = [&] { return s.normal({s.tokens, s.ffn}); };
  const auto w = [&] { return s.normal({s.ffn, s.width}); };
  if (kPass == Pass::kWeight) {
    const Fp8Rows a = fp8_columns(dy()), b = fp8_columns(x());
    const at::Tensor sum = at::zeros({s.ffn, s.width}, s.wide());
    return [=]() -> BenchTensors {
      fp8_add_product(sum, a, b);
      return {};
    };
  }
  const Fp8Rows a = fp8_rows(kPass == Pass::kForward ? x() : dy());
  const Fp8Rows b = kPass == Pass::kForward ? fp8_rows(w()) : fp8_columns(w());
  return [=]() -> BenchTensors { return {fp8_product(a, b, s.dtype)}; };
}

// The other way to add to a sum: as a product in the benchmark's type.
BenchRun fp8_rounded_run(const BenchShape& s) {
  const Fp8Rows a = fp8_columns(s.normal({s.tokens, s.ffn}));
  const Fp8Rows b = fp8_columns(s.normal({s.tokens, s.width}));
  const at::Tensor sum = at::zeros({s.ffn, s.width}, s.wide());
  return [=]() -> BenchTensors {
    sum.add_(fp8_product(a, b, s.dtype));
    return {};
  };
}

BenchRun fp8_rows_run(const BenchShape& s) {
  const at::Tensor x = s.normal({s.tokens, s.ffn});
  return [=]() -> BenchTensors { return {fp8_rows(x).values}; };
}

BenchRun fp8_columns_run(const BenchShape& s) {
  const at::Tensor x = s.normal({s.tokens, s.ffn});
  return [=]() -> BenchTensors { return {fp8_columns(x).values}; };
}

BenchRun fp8_both_run(const BenchShape& s) {
  const at::Tensor x = s.normal({s.tokens, s.ffn});
  return [=]() -> BenchTensors {
    const Fp8Both both = fp8_rows_and_columns(x);
    return {both.rows.values, both.columns.values};
  };
}

// Read once, written `kTimes` in a byte an element.
template <int kTimes>
double rounding_bytes(const BenchShape& s) {
  return s.rows(s.ffn) * (s.element_bytes() + kTimes);
}

template <Pass kPass>
BenchOp product(const char* name, BenchRun (*run)(const BenchShape&),
                double (*bytes)(const BenchShape&)) {
  return {name, pass_name(kPass), BenchSweep::kTokens, product_text, bytes, flops<kPass>,
          run,  kMostTokens};
}

template <bool kFp8>
void add_linear_ops(std::vector<BenchOp>& ops, const char* name) {
  ops.push_back(product<Pass::kForward>(name, linear_run<Pass::kForward, kFp8>,
                                        linear_bytes<Pass::kForward>));
  ops.push_back(
      product<Pass::kInput>(name, linear_run<Pass::kInput, kFp8>, linear_bytes<Pass::kInput>));
  ops.push_back(
      product<Pass::kWeight>(name, linear_run<Pass::kWeight, kFp8>, linear_bytes<Pass::kWeight>));
  ops.push_back(product<Pass::kBackward>(name, linear_run<Pass::kBackward, kFp8>,
                                         linear_bytes<Pass::kBackward>));
}

void add_fp8_products(std::vector<BenchOp>& ops, const char* name) {
  ops.push_back(
      product<Pass::kForward>(name, fp8_product_run<Pass::kForward>, fp8_bytes<Pass::kForward>));
  ops.push_back(
      product<Pass::kInput>(name, fp8_product_run<Pass::kInput>, fp8_bytes<Pass::kInput>));
  ops.push_back(
      product<Pass::kWeight>(name, fp8_product_run<Pass::kWeight>, fp8_bytes<Pass::kWeight>));
}

BenchOp rounding(const char* name, BenchRun (*run)(const BenchShape&),
                 double (*bytes)(const BenchShape&)) {
  return {name, "fwd", BenchSweep::kTokens, activation_text, bytes, {}, run, kMostTokens};
}

}  // namespace

std::vector<BenchOp> product_bench_ops() {
  std::vector<BenchOp> ops;
  add_linear_ops<false>(ops, "linear");
  add_linear_ops<true>(ops, "fp8_linear");
  add_fp8_products(ops, "fp8_product");
  ops.push_back(
      product<Pass::kWeight>("fp8_rounded_product", fp8_rounded_run, fp8_bytes<Pass::kWeight>));
  ops.push_back(rounding("fp8_rows", fp8_rows_run, rounding_bytes<1>));
  ops.push_back(rounding("fp8_columns", fp8_columns_run, rounding_bytes<1>));
  ops.push_back(rounding("fp8_rows_and_columns", fp8_both_run, rounding_bytes<2>));
  return ops;
}

}  // namespace sala
