// sala-bench: which blocks every query attends to (block selection of InfLLM-V2), with the default
// configuration.
#include <algorithm>
#include <cmath>

#include "kernels/ops.h"
#include "trainer/bench/op.h"

namespace sala {

namespace {

// Queries and keys are read, lists written.
double select_bytes(const BenchShape& s) {
  const double kv = double(s.num_kv_heads()), K = double(SparseConfig().blocks_per_token());
  return s.head_values() * (1 + kv / double(s.heads)) * s.element_bytes() +
         double(s.tokens) * kv * K * double(sizeof(int32_t));
}

// Products with the fine and the coarse compressed keys before each query that sees more than K
// blocks; the others list all they see.
double select_flops(const BenchShape& s) {
  const SparseConfig c;
  const double n = double(s.tokens / s.documents);
  const double all_listed = double(c.blocks_per_token() * c.block_size);
  const double keys_seen = n > all_listed ? (n * n - all_listed * all_listed) / 2 : 0;
  const double windows_per_key = 1 / double(c.kernel_stride) + 1 / double(c.block_size);
  return double(s.documents) * keys_seen * windows_per_key * 2 * double(s.heads * s.head_size);
}

BenchRun select_run(const BenchShape& s) {
  const at::Tensor q = s.normal_heads(), k = s.normal({s.tokens, s.num_kv_heads(), s.head_size});
  const Documents docs = s.packed();
  const double scale = 1.0 / std::sqrt(double(s.head_size));
  return [=]() -> BenchTensors { return {block_select(q, k, docs, docs, SparseConfig(), scale)}; };
}

}  // namespace

std::vector<BenchOp> select_bench_ops() {
  return {{"block_select", "fwd", BenchSweep::kHeads, kv_shape_text, select_bytes, select_flops,
           select_run}};
}

}  // namespace sala
