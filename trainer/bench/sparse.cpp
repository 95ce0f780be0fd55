// sala-bench: attention over given lists. Query heads share a KV head in groups of up to 16, as in
// MiniCPM-SALA; lists are as long as its configuration says.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kernels/ops.h"
#include "trainer/bench/op.h"
#include "trainer/recipe/field_values.h"

namespace sala {

namespace {

int64_t group_of(const BenchShape& s) {
  int64_t group = std::min<int64_t>(s.heads, 16);
  while (s.heads % group != 0) --group;
  return group;
}
int64_t kv_heads(const BenchShape& s) { return s.heads / group_of(s); }
at::Tensor normal_keys(const BenchShape& s) {
  return s.normal({s.tokens, kv_heads(s), s.head_size});
}
double scale_of(const BenchShape& s) { return 1.0 / std::sqrt(double(s.head_size)); }

std::string grouped_shape_text(const BenchShape& s) {
  return fmt::format("{} x {}/{} x {}", format_count(s.tokens), s.heads, kv_heads(s), s.head_size);
}

// Keys in the lists of all tokens: blocks up to the token's own, as many as a list holds.
double listed_keys(const BenchShape& s) {
  const SparseConfig config;
  const int64_t length = s.tokens / s.documents, longest = config.blocks_per_token();
  double blocks = 0;
  for (int64_t first = 0; first < length; first += config.block_size) {
    const int64_t tokens = std::min(config.block_size, length - first);
    blocks += double(tokens) * double(std::min(first / config.block_size + 1, longest));
  }
  return blocks * double(config.block_size * s.documents);
}

// `products` products over the listed keys, for each query head.
std::function<double(const BenchShape&)> listed_flops(double products) {
  return [products](const BenchShape& s) {
    return products * 2 * listed_keys(s) * double(s.heads) * double(s.head_size);
  };
}

// `queries` tensors of (T, NH, HS), `keys` of (T, NKV, HS), and the lists.
std::function<double(const BenchShape&)> sparse_bytes(double queries, double keys) {
  return [=](const BenchShape& s) {
    const double num_kv = double(kv_heads(s));
    const double values = queries * s.head_values() + keys * s.rows(kv_heads(s) * s.head_size);
    return values * s.element_bytes() + 4 * num_kv * s.rows(SparseConfig().blocks_per_token());
  };
}

// The first block, one of every equal part of the blocks between, and the window. Each part's
// choice holds for `period` tokens; the parts change one after another, so that neighbours differ
// little.
at::Tensor spread_lists(const BenchShape& s, int64_t period) {
  constexpr int64_t kGrowth = 1024;  // tokens for which the parts stay what they are
  const SparseConfig c;
  const int64_t local = c.local_blocks(), K = c.blocks_per_token(), parts = K - local - 2;
  const auto integers = at::TensorOptions(s.device).dtype(at::kLong);
  const int64_t length = s.tokens / s.documents;
  const at::Tensor place = at::arange(s.tokens, integers).remainder(length).unsqueeze(1);
  const at::Tensor own = place.floor_divide(c.block_size), part = at::arange(parts, integers);
  const at::Tensor epoch = (place + (part * period).floor_divide(parts)).floor_divide(period);
  const at::Tensor room =
      (place.floor_divide(kGrowth) * (kGrowth / c.block_size) - local - 1).clamp_min(0);
  const at::Tensor begin = (part * room).floor_divide(parts);
  const at::Tensor size = ((part + 1) * room).floor_divide(parts) - begin;
  const at::Tensor all = at::arange(K, integers), last = at::arange(-local, 1, integers);
  std::vector<at::Tensor> lists;
  for (int64_t head = 0; head < kv_heads(s); ++head) {
    const at::Tensor chosen = at::rand({length / period + 2, parts}, s.wide()).gather(0, epoch);
    const at::Tensor middle = begin + (chosen * size).to(at::kLong) + 1;
    const at::Tensor list = at::cat({at::zeros_like(own), middle, own + last}, 1);
    lists.push_back(at::where(own < K, at::where(all <= own, all, -1), list).to(at::kInt));
  }
  return at::stack(lists);
}

template <int64_t kPeriod>
BenchRun sparse_run(const BenchShape& s, bool backward) {
  const at::Tensor q = s.normal_heads(), k = normal_keys(s), v = normal_keys(s);
  const at::Tensor blocks = spread_lists(s, kPeriod);
  const Documents docs = s.packed();
  const double scale = scale_of(s);
  const int64_t size = SparseConfig().block_size;
  if (!backward) {
    return [=]() -> BenchTensors {
      auto [o, lse] = block_sparse_attention_forward(q, k, v, blocks, docs, docs, size, scale);
      return {o, lse};
    };
  }
  const auto [o, lse] = block_sparse_attention_forward(q, k, v, blocks, docs, docs, size, scale);
  const at::Tensor d_o = at::randn_like(q), out = o, log_sum = lse;
  return [=]() -> BenchTensors {
    auto [dq, dk, dv] = block_sparse_attention_backward(d_o, q, k, v, out, log_sum, blocks, docs,
                                                        docs, size, scale);
    return {dq, dk, dv};
  };
}

}  // namespace

std::vector<BenchOp> sparse_bench_ops() {
  constexpr auto kHeads = BenchSweep::kHeads;
  constexpr int64_t kCorrelated = 31, kRandom = 1;  // tokens that a choice holds for
  const auto row = [](const char* name, bool backward, auto prepare) {
    return BenchOp{.name = name,
                   .pass = backward ? "bwd" : "fwd",
                   .sweep = kHeads,
                   .shape = grouped_shape_text,
                   .bytes = backward ? sparse_bytes(4, 4) : sparse_bytes(2, 2),
                   .flops = listed_flops(backward ? 5 : 2),
                   .prepare = prepare};
  };
  return {
      row("sparse_attention", false, prepare_run<sparse_run<kCorrelated>, false>),
      row("sparse_attention", true, prepare_run<sparse_run<kCorrelated>, true>),
      row("sparse_random_lists", false, prepare_run<sparse_run<kRandom>, false>),
      row("sparse_random_lists", true, prepare_run<sparse_run<kRandom>, true>),
  };
}

}  // namespace sala
