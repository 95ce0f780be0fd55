// Weighted means over rows, and the formulas on them.
#include "trainer/scores/formulas.h"

#include <algorithm>
#include <numeric>

namespace sala {

namespace {

std::vector<double> means(const SwapTable& table, const std::vector<double>& values,
                          std::span<const double> weight) {
  const double total = std::accumulate(weight.begin(), weight.end(), 0.0);
  std::vector<double> mean(static_cast<size_t>(table.num_layers), 0.0);
  for (int64_t r = 0; r < table.num_rows; ++r) {
    for (int64_t l = 0; l < table.num_layers; ++l) {
      mean[l] += weight[r] * values[r * table.num_layers + l];
    }
  }
  for (double& m : mean) m /= total;
  return mean;
}

// 0 where every layer is 0: none matters.
double share(double value, const std::vector<double>& of) {
  const double mean = std::accumulate(of.begin(), of.end(), 0.0) / static_cast<double>(of.size());
  return mean > 0 ? value / mean : 0;
}

}  // namespace

LayerScores kl_scores(const SwapTable& table, std::span<const double> weight) {
  LayerScores s{means(table, table.plain, weight), means(table, table.recall, weight), {}};
  for (int64_t l = 0; l < table.num_layers; ++l) {
    s.score.push_back(share(s.plain[l], s.plain) + share(s.recall[l], s.recall));
  }
  return s;
}

LayerScores halo_scores(const SwapTable& table, std::span<const double> weight) {
  constexpr double kEpsilon = 1e-6, kMost = 50;
  LayerScores s{means(table, table.plain, weight), means(table, table.recall, weight), {}};
  const double best_plain = *std::max_element(s.plain.begin(), s.plain.end());
  const double best_recall = *std::max_element(s.recall.begin(), s.recall.end());
  for (int64_t l = 0; l < table.num_layers; ++l) {
    const double ratio = (best_recall - s.recall[l]) / (best_plain - s.plain[l] + kEpsilon);
    s.score.push_back(std::min(ratio, kMost));
  }
  return s;
}

}  // namespace sala
