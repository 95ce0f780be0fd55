// Inputs of sala-bench, and its table put together.
#include "trainer/bench/op.h"

#include <algorithm>

#include "trainer/recipe/field_values.h"

namespace sala {

at::Tensor BenchShape::normal(at::IntArrayRef sizes) const {
  return at::randn(sizes, at::TensorOptions(device).dtype(dtype));
}

Documents BenchShape::packed() const {
  std::vector<int64_t> starts;
  for (int64_t d = 0; d < documents; ++d) starts.push_back(d * (tokens / documents));
  return Documents::from_starts(starts, tokens, device);
}

int64_t BenchShape::num_kv_heads() const {
  if (kv_heads > 0) return kv_heads;
  int64_t group = std::min<int64_t>(heads, 16);
  while (heads % group != 0) --group;
  return heads / group;
}

std::string shape_text(std::initializer_list<int64_t> sizes) {
  std::string text;
  for (const int64_t size : sizes) text += (text.empty() ? "" : " x ") + format_count(size);
  return text;
}

std::string head_shape_text(const BenchShape& s) {
  return shape_text({s.tokens, s.heads, s.head_size});
}

std::string kv_shape_text(const BenchShape& s) {
  return shape_text({s.tokens, s.heads}) + "/" + shape_text({s.num_kv_heads(), s.head_size});
}

std::vector<BenchOp> bench_ops() {
  std::vector<BenchOp> all;
  for (const auto& part :
       {attention_bench_ops(), select_bench_ops(), sparse_bench_ops(), decode_bench_ops(),
        elementwise_bench_ops(), mixer_bench_ops(), product_bench_ops(), training_bench_ops()}) {
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

}  // namespace sala
