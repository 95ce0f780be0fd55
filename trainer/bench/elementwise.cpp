// sala-bench: norms, rotary embedding, gates and SwiGLU. Bytes are each input read once and each
// output written once; sums over tokens (weight gradients) are too small to count.
#include "kernels/columns.h"
#include "kernels/ops.h"
#include "kernels/squared_error.h"
#include "trainer/bench/op.h"

namespace sala {

namespace {

constexpr double kEps = 1e-6;
constexpr double kStatistic = 4;  // bytes of a row's fp32 1 / rms

std::string width_text(const BenchShape& s) { return shape_text({s.tokens, s.width}); }
std::string ffn_text(const BenchShape& s) { return shape_text({s.tokens, s.ffn}); }

// `count` tensors of (T, C) and one statistic per row.
std::function<double(const BenchShape&)> width_bytes(double count) {
  return [count](const BenchShape& s) {
    return count * s.rows(s.width) * s.element_bytes() + s.rows(1) * kStatistic;
  };
}

// `count` tensors of (T, NH, HS), cos and sin, and one statistic per head.
std::function<double(const BenchShape&)> rope_bytes(double count) {
  return [count](const BenchShape& s) {
    return count * s.head_values() * s.element_bytes() + s.rows(s.head_size) * 4 +
           s.rows(s.heads) * kStatistic;
  };
}

std::function<double(const BenchShape&)> ffn_bytes(double count) {
  return [count](const BenchShape& s) { return count * s.rows(s.ffn) * s.element_bytes(); };
}

at::Tensor normal_rows(const BenchShape& s) { return s.normal({s.tokens, s.width}); }

BenchRun qk_norm_rope_run(const BenchShape& s, bool backward) {
  const at::Tensor x = s.normal_heads(), weight = s.normal({s.head_size});
  const at::Tensor angle = at::rand({s.tokens, s.head_size / 2}, s.wide());
  const at::Tensor cos = angle.cos(), sin = angle.sin();
  if (!backward) {
    return [=]() -> BenchTensors {
      auto [y, rstd] = qk_norm_rope_forward(x, weight, cos, sin, kEps);
      return {y, rstd};
    };
  }
  const at::Tensor rstd = std::get<1>(qk_norm_rope_forward(x, weight, cos, sin, kEps));
  const at::Tensor dy = at::randn_like(x);
  return [=]() -> BenchTensors {
    auto [dx, dweight] = qk_norm_rope_backward(dy, x, weight, rstd, cos, sin);
    return {dx, dweight};
  };
}

BenchRun rmsnorm_run(const BenchShape& s, bool backward) {
  const at::Tensor x = normal_rows(s), weight = s.normal({s.width});
  if (!backward) {
    return [=]() -> BenchTensors {
      auto [y, rstd] = rmsnorm_forward(x, weight, kEps);
      return {y, rstd};
    };
  }
  const at::Tensor rstd = std::get<1>(rmsnorm_forward(x, weight, kEps));
  const at::Tensor dy = at::randn_like(x);
  return [=]() -> BenchTensors {
    auto [dx, dweight] = rmsnorm_backward(dy, x, weight, rstd);
    return {dx, dweight};
  };
}

BenchRun add_rmsnorm_run(const BenchShape& s, bool backward) {
  const at::Tensor x = normal_rows(s), weight = s.normal({s.width});
  if (!backward) {
    const at::Tensor y = at::randn_like(x);
    return [=]() -> BenchTensors {
      auto [h, u, rstd] = add_rmsnorm_forward(x, y, 1.0, weight, kEps);
      return {h, u, rstd};
    };
  }
  const at::Tensor rstd = std::get<1>(rmsnorm_forward(x, weight, kEps));  // x stands for h
  const at::Tensor du = at::randn_like(x), dh = at::randn_like(x);
  return [=]() -> BenchTensors {
    auto [dx, dweight] = add_rmsnorm_backward(du, dh, x, weight, rstd);
    return {dx, dweight};
  };
}

BenchRun gated_norm_run(const BenchShape& s, bool backward) {
  const at::Tensor o = normal_rows(s), z = at::randn_like(o), weight = s.normal({s.width});
  if (!backward) {
    return [=]() -> BenchTensors {
      auto [y, rstd] = gated_norm_forward(o, z, weight, kEps);
      return {y, rstd};
    };
  }
  const at::Tensor rstd = std::get<1>(gated_norm_forward(o, z, weight, kEps));
  const at::Tensor dy = at::randn_like(o);
  return [=]() -> BenchTensors {
    auto [d_o, dz, dweight] = gated_norm_backward(dy, o, z, weight, rstd);
    return {d_o, dz, dweight};
  };
}

BenchRun swiglu_run(const BenchShape& s, bool backward) {
  const at::Tensor gate = s.normal({s.tokens, s.ffn}), up = at::randn_like(gate);
  if (!backward) return [=]() -> BenchTensors { return {swiglu_forward(gate, up)}; };
  const at::Tensor dy = at::randn_like(gate);
  return [=]() -> BenchTensors {
    auto [d_gate, d_up] = swiglu_backward(dy, gate, up);
    return {d_gate, d_up};
  };
}

// A quarter of what one product gives.
BenchRun columns_run(const BenchShape& s, bool /*backward*/) {
  const at::Tensor part = s.normal({s.tokens, 4 * s.width}).narrow(1, s.width, s.width);
  return [=]() -> BenchTensors { return {dense_columns(part)}; };
}

BenchRun squared_error_run(const BenchShape& s, bool /*backward*/) {
  const at::Tensor y = normal_rows(s), target = normal_rows(s);
  return [=]() -> BenchTensors {
    auto [error, dy] = squared_error(y, target, 0.5);
    return {error, dy};
  };
}

}  // namespace

std::vector<BenchOp> elementwise_bench_ops() {
  const auto heads = BenchSweep::kHeads;
  const auto tokens = BenchSweep::kTokens;
  return {
      {"qk_norm_rope",
       "fwd",
       heads,
       head_shape_text,
       rope_bytes(2),
       {},
       prepare_run<qk_norm_rope_run, false>},
      {"qk_norm_rope",
       "bwd",
       heads,
       head_shape_text,
       rope_bytes(3),
       {},
       prepare_run<qk_norm_rope_run, true>},
      {"gated_norm",
       "fwd",
       tokens,
       width_text,
       width_bytes(3),
       {},
       prepare_run<gated_norm_run, false>},
      {"gated_norm",
       "bwd",
       tokens,
       width_text,
       width_bytes(5),
       {},
       prepare_run<gated_norm_run, true>},
      {"rmsnorm", "fwd", tokens, width_text, width_bytes(2), {}, prepare_run<rmsnorm_run, false>},
      {"rmsnorm", "bwd", tokens, width_text, width_bytes(3), {}, prepare_run<rmsnorm_run, true>},
      {"add_rmsnorm",
       "fwd",
       tokens,
       width_text,
       width_bytes(4),
       {},
       prepare_run<add_rmsnorm_run, false>},
      {"add_rmsnorm",
       "bwd",
       tokens,
       width_text,
       width_bytes(4),
       {},
       prepare_run<add_rmsnorm_run, true>},
      {"columns", "fwd", tokens, width_text, width_bytes(2), {}, prepare_run<columns_run, false>},
      {"squared_error",
       "fwd",
       tokens,
       width_text,
       width_bytes(3),
       {},
       prepare_run<squared_error_run, false>},
      {"swiglu", "fwd", tokens, ffn_text, ffn_bytes(3), {}, prepare_run<swiglu_run, false>},
      {"swiglu", "bwd", tokens, ffn_text, ffn_bytes(5), {}, prepare_run<swiglu_run, true>},
  };
}

}  // namespace sala
