// sala-bench: lightning attention, its decode step, and dense attention.
#include <cmath>
#include <utility>

#include "kernels/ops.h"
#include "kernels/paths.h"
#include "trainer/bench/op.h"

namespace sala {

namespace {

double scale_of(const BenchShape& s) { return 1.0 / std::sqrt(double(s.head_size)); }

// `count` tensors of (T, NH, HS).
std::function<double(const BenchShape&)> head_bytes(double count) {
  return [count](const BenchShape& s) { return count * s.head_values() * s.element_bytes(); };
}

// FLOPs of `products` products with an (HS, HS) state per token and head: the recurrent form, the
// fewest there are. Chunks trade more of them for tensor cores.
std::function<double(const BenchShape&)> state_flops(double products) {
  return [products](const BenchShape& s) {
    return products * 2 * s.head_values() * double(s.head_size);
  };
}

// The state of every document is read and written.
double decode_bytes(const BenchShape& s) {
  return 4 * s.head_values() * s.element_bytes() + 2 * s.head_values() * double(s.head_size) * 4;
}

// `products` causal products of (n, HS) by (HS, n): half of the full square in each document.
std::function<double(const BenchShape&)> causal_flops(double products) {
  return [products](const BenchShape& s) {
    return products * s.head_values() * double(s.tokens / s.documents);
  };
}

BenchRun lightning_run(const BenchShape& s, bool backward) {
  const at::Tensor q = s.normal_heads(), k = at::randn_like(q), v = at::randn_like(q);
  const at::Tensor slopes = lightning_slopes(s.heads);
  const Documents docs = s.packed();
  const double scale = scale_of(s);
  if (!backward) {
    return [=]() -> BenchTensors {
      return {std::get<0>(lightning_forward(q, k, v, slopes, docs, scale, {}, false))};
    };
  }
  const at::Tensor d_o = at::randn_like(q);
  return [=]() -> BenchTensors {
    auto [dq, dk, dv, d_initial] = lightning_backward(d_o, q, k, v, slopes, docs, scale);
    return {dq, dk, dv};
  };
}

// One token of each of T sequences that generate side by side.
BenchRun decode_run(const BenchShape& s) {
  const at::Tensor q = s.normal_heads(), k = at::randn_like(q), v = at::randn_like(q);
  const at::Tensor state = at::randn({s.documents, s.heads, s.head_size, s.head_size}, s.wide());
  const at::Tensor slopes = lightning_slopes(s.heads);
  const Documents docs = s.packed();
  const double scale = scale_of(s);
  return [=]() -> BenchTensors {
    auto [o, next] = lightning_forward(q, k, v, slopes, docs, scale, state);
    return {o, next};
  };
}

BenchRun dense_run(const BenchShape& s, bool backward) {
  const at::Tensor q = s.normal_heads(), k = at::randn_like(q), v = at::randn_like(q);
  const Documents docs = s.packed();
  const double scale = scale_of(s);
  if (!backward) {
    return [=]() -> BenchTensors {
      auto [o, lse] = dense_attention_forward(q, k, v, docs, docs, scale);
      return {o, lse};
    };
  }
  const auto [o, lse] = dense_attention_forward(q, k, v, docs, docs, scale);
  const at::Tensor d_o = at::randn_like(q), out = o, log_sum = lse;
  return [=]() -> BenchTensors {
    auto [dq, dk, dv] = dense_attention_backward(d_o, q, k, v, out, log_sum, docs, docs, scale);
    return {dq, dk, dv};
  };
}

// While one lives, results may differ from call to call.
class AnyOrder {
 public:
  AnyOrder() : before_(set_path_rules({.deterministic = false})) {}
  ~AnyOrder() { set_path_rules(std::move(before_)); }
  AnyOrder(const AnyOrder&) = delete;
  AnyOrder& operator=(const AnyOrder&) = delete;

 private:
  PathRules before_;
};

BenchRun dense_any_order_run(const BenchShape& s, bool backward) {
  const AnyOrder any_order;
  const BenchRun run = dense_run(s, backward);
  return [run]() -> BenchTensors {
    const AnyOrder any_order;
    return run();
  };
}

BenchRun dense_output_run(const BenchShape& s) {
  const at::Tensor q = s.normal_heads(), k = at::randn_like(q), v = at::randn_like(q);
  const Documents docs = s.packed();
  const double scale = scale_of(s);
  return [=]() -> BenchTensors { return {dense_attention_output(q, k, v, docs, docs, scale)}; };
}

}  // namespace

std::vector<BenchOp> attention_bench_ops() {
  constexpr auto kHeads = BenchSweep::kHeads;
  constexpr int64_t kDenseTokens = 32 << 10;
  return {
      {"lightning", "fwd", kHeads, head_shape_text, head_bytes(4), state_flops(2),
       prepare_run<lightning_run, false>},
      {"lightning", "bwd", kHeads, head_shape_text, head_bytes(7), state_flops(5),
       prepare_run<lightning_run, true>},
      {.name = "decode",
       .pass = "step",
       .sweep = kHeads,
       .shape = head_shape_text,
       .bytes = decode_bytes,
       .flops = state_flops(2),
       .prepare = decode_run,
       .one_token_documents = true},
      {"dense_attention", "fwd", kHeads, head_shape_text, head_bytes(4), causal_flops(2),
       prepare_run<dense_run, false>, kDenseTokens},
      {"dense_attention", "bwd", kHeads, head_shape_text, head_bytes(8), causal_flops(5),
       prepare_run<dense_run, true>, kDenseTokens},
      {"dense_any_order", "fwd", kHeads, head_shape_text, head_bytes(4), causal_flops(2),
       prepare_run<dense_any_order_run, false>, kDenseTokens},
      {"dense_any_order", "bwd", kHeads, head_shape_text, head_bytes(8), causal_flops(5),
       prepare_run<dense_any_order_run, true>, kDenseTokens},
      {"dense_output", "fwd", kHeads, head_shape_text, head_bytes(4), causal_flops(2),
       dense_output_run, kDenseTokens},
  };
}

}  // namespace sala
