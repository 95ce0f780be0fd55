// sala-bench: attention over given lists. Query heads share a KV head in groups of up to 16, as in
// MiniCPM-SALA, unless the shape says otherwise; lists are as long as its configuration says.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kernels/ops.h"
#include "trainer/bench/sparse.h"
#include "trainer/recipe/field_values.h"

namespace sala {

namespace {

at::Tensor normal_keys(const BenchShape& s) {
  return s.normal({s.before + s.tokens, s.num_kv_heads(), s.head_size});
}
double scale_of(const BenchShape& s) { return 1.0 / std::sqrt(double(s.head_size)); }

std::string grouped_shape_text(const BenchShape& s) {
  const std::string before = s.before > 0 ? format_count(s.before) + " + " : "";
  return fmt::format("{}{} x {}/{} x {}", before, format_count(s.tokens), s.heads, s.num_kv_heads(),
                     s.head_size);
}

// Keys in the lists of all tokens: blocks up to the token's own, as many as a list holds.
double listed_keys(const BenchShape& s) {
  const SparseConfig& c = s.sparse;
  const int64_t end = s.before + s.tokens / s.documents;
  double blocks = 0;
  for (int64_t first = s.before, next; first < end; first = next) {
    const int64_t own = first / c.block_size;
    next = std::min((own + 1) * c.block_size, end);
    blocks += double(next - first) * double(std::min(own + 1, c.blocks_per_token()));
  }
  return blocks * double(c.block_size * s.documents);
}

// `products` products over the listed keys, for each query head.
std::function<double(const BenchShape&)> listed_flops(double products) {
  return [products](const BenchShape& s) {
    return products * 2 * listed_keys(s) * double(s.heads) * double(s.head_size);
  };
}

// `queries` tensors of (T, NH, HS), `keys` of (Tk, NKV, HS), and the lists.
std::function<double(const BenchShape&)> sparse_bytes(double queries, double keys) {
  return [=](const BenchShape& s) {
    const double num_kv = double(s.num_kv_heads());
    const double key_values = double(s.before + s.tokens) * num_kv * double(s.head_size);
    return (queries * s.head_values() + keys * key_values) * s.element_bytes() +
           4 * num_kv * s.rows(s.sparse.blocks_per_token());
  };
}

// The first block, one of every equal part of the blocks between, and the window. Each part's
// choice holds for `period` tokens; the parts change one after another, so that neighbours differ
// little.
at::Tensor spread_lists(const BenchShape& s, int64_t period) {
  constexpr int64_t kGrowth = 1024;  // tokens for which the parts stay what they are
  const SparseConfig& c = s.sparse;
  const int64_t local = c.local_blocks(), K = c.blocks_per_token(), parts = K - local - 2;
  TORCH_CHECK(parts >= 0, "expected lists with room for the window and two more, topk is ", c.topk);
  const auto integers = at::TensorOptions(s.device).dtype(at::kLong);
  const int64_t length = s.tokens / s.documents;
  const at::Tensor place =
      at::arange(s.tokens, integers).remainder(length).add_(s.before).unsqueeze(1);
  const at::Tensor own = place.floor_divide(c.block_size), part = at::arange(parts, integers);
  const at::Tensor epoch = (place + (part * period).floor_divide(parts)).floor_divide(period);
  const at::Tensor room =
      (place.floor_divide(kGrowth) * (kGrowth / c.block_size) - local - 1).clamp_min(0);
  const at::Tensor begin = (part * room).floor_divide(parts);
  const at::Tensor size = ((part + 1) * room).floor_divide(parts) - begin;
  const at::Tensor all = at::arange(K, integers), last = at::arange(-local, 1, integers);
  std::vector<at::Tensor> lists;
  for (int64_t head = 0; head < s.num_kv_heads(); ++head) {
    const at::Tensor chosen =
        at::rand({(s.before + length) / period + 2, parts}, s.wide()).gather(0, epoch);
    const at::Tensor middle = begin + (chosen * size).to(at::kLong) + 1;
    const at::Tensor list = at::cat({at::zeros_like(own), middle, own + last}, 1);
    lists.push_back(at::where(own < K, at::where(all <= own, all, -1), list).to(at::kInt));
  }
  return at::stack(lists);
}

BenchRun sparse_run(const BenchShape& s, const at::Tensor& blocks, bool backward) {
  const at::Tensor q = s.normal_heads(), k = normal_keys(s), v = normal_keys(s);
  const Documents q_docs = s.packed();
  const Documents k_docs = s.before > 0 ? Documents::single(k.size(0), s.device) : q_docs;
  const double scale = scale_of(s);
  const int64_t size = s.sparse.block_size;
  if (!backward) {
    return [=]() -> BenchTensors {
      auto [o, lse] = block_sparse_attention_forward(q, k, v, blocks, q_docs, k_docs, size, scale);
      return {o, lse};
    };
  }
  const auto [o, lse] =
      block_sparse_attention_forward(q, k, v, blocks, q_docs, k_docs, size, scale);
  const at::Tensor d_o = at::randn_like(q), out = o, log_sum = lse;
  return [=]() -> BenchTensors {
    auto [dq, dk, dv] = block_sparse_attention_backward(d_o, q, k, v, out, log_sum, blocks, q_docs,
                                                        k_docs, size, scale);
    return {dq, dk, dv};
  };
}

}  // namespace

// A choice holds for 31 tokens, or for one.
at::Tensor correlated_lists(const BenchShape& shape) { return spread_lists(shape, 31); }
at::Tensor random_lists(const BenchShape& shape) { return spread_lists(shape, 1); }

BenchOp sparse_bench_op(const std::string& name, bool backward, const MakeLists& lists) {
  return {.name = name,
          .pass = backward ? "bwd" : "fwd",
          .sweep = BenchSweep::kHeads,
          .shape = grouped_shape_text,
          .bytes = backward ? sparse_bytes(4, 4) : sparse_bytes(2, 2),
          .flops = listed_flops(backward ? 5 : 2),
          .prepare = [=](const BenchShape& s) { return sparse_run(s, lists(s), backward); }};
}

std::vector<BenchOp> sparse_bench_ops() {
  return {sparse_bench_op(kCorrelatedName, false, correlated_lists),
          sparse_bench_op(kCorrelatedName, true, correlated_lists),
          sparse_bench_op(kRandomName, false, random_lists),
          sparse_bench_op(kRandomName, true, random_lists)};
}

}  // namespace sala
