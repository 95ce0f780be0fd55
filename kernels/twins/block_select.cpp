// Block selection of InfLLM-V2 (arXiv:2509.24663), one query and one head at a time.

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/check.h"
#include "kernels/twins/attention.h"

namespace sala {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Windows of `size` tokens every `stride` whose last token is at or before t.
int64_t visible_windows(int64_t t, int64_t size, int64_t stride) {
  return t + 1 < size ? 0 : (t + 1 - size) / stride + 1;
}

// Scaled products of q (HS) with the means of windows 0 .. count - 1 of keys (nk, HS), each rounded
// to `kept`.
std::vector<double> window_logits(const at::Tensor& q, const at::Tensor& keys, int64_t count,
                                  int64_t size, int64_t stride, double scale, at::ScalarType kept) {
  std::vector<double> logits(count);
  for (int64_t j = 0; j < count; ++j) {
    const at::Tensor mean = keys.narrow(0, j * stride, size).mean(0).to(kept).to(at::kDouble);
    logits[j] = scale * mean.dot(q).item<double>();
  }
  return logits;
}

// Sum over the heads of a group of softmax-like weights, one per visible window; the normaliser
// comes from windows four times as wide. All zero while no such window is visible (such rows choose
// everything anyway).
std::vector<double> window_weights(const at::Tensor& q, const at::Tensor& keys, int64_t t,
                                   const SparseConfig& c, double scale, at::ScalarType kept) {
  const int64_t fine = visible_windows(t, c.kernel_size, c.kernel_stride);
  const int64_t coarse = visible_windows(t, 4 * c.kernel_size, 4 * c.kernel_stride);
  std::vector<double> weights(fine, 0.0);
  if (coarse == 0) return weights;
  for (int64_t g = 0; g < q.size(0); ++g) {
    const auto x = window_logits(q[g], keys, fine, c.kernel_size, c.kernel_stride, scale, kept);
    const auto y =
        window_logits(q[g], keys, coarse, 4 * c.kernel_size, 4 * c.kernel_stride, scale, kept);
    const double top = *std::max_element(y.begin(), y.end());
    double sum = 0;
    for (const double value : y) sum += std::exp(value - top);
    const double lse = top + std::log(sum);
    // The coarse maximum does not bound the fine ones: cut before fp32 could overflow.
    for (int64_t j = 0; j < fine; ++j) weights[j] += std::exp(std::min(x[j] - lse, 80.0));
  }
  return weights;
}

// Scores of blocks 0 .. t / block_size.
std::vector<double> scores_of_query(const at::Tensor& q, const at::Tensor& keys, int64_t t,
                                    const SparseConfig& c, double scale, at::ScalarType kept) {
  const std::vector<double> weights = window_weights(q, keys, t, c, scale, kept);
  const int64_t own = t / c.block_size, ratio = c.block_size / c.kernel_stride;
  std::vector<double> scores(own + 1, -kInfinity);
  for (int64_t b = 0; b <= own; ++b) {
    if (b < c.init_blocks || b >= own - c.local_blocks()) {
      scores[b] = kInfinity;
      continue;
    }
    for (int64_t j = std::max<int64_t>(ratio * b - 1, 0); j < ratio * (b + 1); ++j) {
      if (j < static_cast<int64_t>(weights.size())) scores[b] = std::max(scores[b], weights[j]);
    }
  }
  return scores;
}

}  // namespace

at::Tensor block_scores_twin(const at::Tensor& q, const at::Tensor& k, const Documents& q_docs,
                             const Documents& k_docs, const SparseConfig& config, double scale,
                             at::ScalarType kept) {
  const int64_t NKV = k.size(1), G = q.size(1) / NKV;
  const int64_t NB = (k_docs.longest + config.block_size - 1) / config.block_size;
  const at::Tensor q64 = q.detach().to(at::kDouble), k64 = k.detach().to(at::kDouble);
  at::Tensor all = at::full({NKV, q.size(0), NB}, -kInfinity, at::kDouble);
  for (int64_t d = 0; d < q_docs.count(); ++d) {
    for (int64_t n = 0; n < NKV; ++n) {
      const at::Tensor keys =
          k64.narrow(0, k_docs.offsets[d], k_docs.length(d)).select(1, n).contiguous();
      for (int64_t i = 0; i < q_docs.length(d); ++i) {
        const int64_t t = k_docs.length(d) - q_docs.length(d) + i, row = q_docs.offsets[d] + i;
        const at::Tensor heads = q64[row].narrow(0, n * G, G);
        const std::vector<double> scores = scores_of_query(heads, keys, t, config, scale, kept);
        std::copy(scores.begin(), scores.end(),
                  all.data_ptr<double>() + (n * q.size(0) + row) * NB);
      }
    }
  }
  return all;
}

at::Tensor block_select_twin(const at::Tensor& q, const at::Tensor& k, const Documents& q_docs,
                             const Documents& k_docs, const SparseConfig& config, double scale,
                             at::ScalarType kept) {
  const at::Tensor scores = block_scores_twin(q, k, q_docs, k_docs, config, scale, kept);
  const int64_t K = config.blocks_per_token(), NB = scores.size(2);
  at::Tensor blocks = at::full({scores.size(0), scores.size(1), K}, -1, at::kInt);
  for (int64_t row = 0; row < scores.size(0) * scores.size(1); ++row) {
    const double* s = scores.data_ptr<double>() + row * NB;
    std::vector<int> order(NB);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return s[a] > s[b]; });
    order.resize(std::min(K, NB));
    std::erase_if(order, [&](int b) { return s[b] == -kInfinity; });
    std::sort(order.begin(), order.end());
    std::copy(order.begin(), order.end(), blocks.data_ptr<int>() + row * K);
  }
  return blocks;
}

}  // namespace sala
