// One shape, the file's, and several kinds of lists.
#include "trainer/bench/lists.h"

#include <fmt/format.h>

#include <stdexcept>
#include <utility>
#include <vector>

#include "trainer/bench/report.h"
#include "trainer/bench/sparse.h"

namespace sala {

namespace {

[[noreturn]] void refuse_lists(const std::string& what) {
  throw std::runtime_error("--lists: " + what);
}

// The lists of the first KV heads, for as many as are measured.
MakeLists of_layer(const LayerLists& layer) {
  return [blocks = layer.blocks](const BenchShape& s) {
    return blocks.narrow(0, 0, s.kv_heads).contiguous().to(s.device);
  };
}

}  // namespace

BenchOptions options_for_lists(BenchOptions o, const BlockLists& lists) {
  if (!o.ops.empty() || !o.tokens.empty() || o.documents != 1 || o.serve.on) {
    refuse_lists(
        "the file says what is measured; leave out --op, --tokens, --documents and --serve");
  }
  const int64_t num_kv = lists.num_kv_heads();
  if (o.kv_heads > num_kv) {
    refuse_lists(fmt::format("the file has lists of {} KV heads, --kv-heads asks for {}", num_kv,
                             o.kv_heads));
  }
  if (o.kv_heads == 0) o.kv_heads = num_kv;
  if (o.heads.empty()) o.heads = {lists.num_heads / num_kv * o.kv_heads};
  if (o.heads.size() != 1 || o.heads[0] % o.kv_heads != 0) {
    refuse_lists(
        fmt::format("expected one number of heads that {} KV heads divide (--heads)", o.kv_heads));
  }
  if (o.head_size == 0) o.head_size = lists.head_size;
  o.tokens = {lists.num_tokens()};
  return o;
}

void run_lists(const BenchOptions& o, const BlockLists& lists, BenchShape shape,
               BenchReport& report) {
  shape.tokens = lists.num_tokens();
  shape.before = lists.first_token;
  shape.heads = o.heads.front();
  shape.kv_heads = o.kv_heads;
  shape.sparse = lists.config;
  std::vector<std::pair<std::string, MakeLists>> kinds;
  for (const LayerLists& layer : lists.layers) {
    kinds.emplace_back(fmt::format("trained_layer_{}", layer.layer), of_layer(layer));
  }
  if (lists.config.topk > 1) {  // made-up lists draw beyond what is forced
    kinds.emplace_back(kCorrelatedName, correlated_lists);
    kinds.emplace_back(kRandomName, random_lists);
  }
  for (const auto& [name, make] : kinds) {
    for (const bool backward : {false, true}) {
      measure_op(sparse_bench_op(name, backward, make), shape, o.repeats, report);
    }
  }
  for (const auto& [name, make] : kinds) {
    report.lists(name, list_facts(make(shape).cpu(), shape.before, shape.sparse));
  }
}

}  // namespace sala
