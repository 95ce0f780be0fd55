// Forced layers first, then the best.
#include "trainer/recipe/layer_choice.h"

#include <algorithm>
#include <numeric>

namespace sala {

std::vector<int64_t> by_score(std::span<const double> scores) {
  std::vector<int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
  return order;
}

std::vector<int64_t> chosen_layers(const LayerChoice& choice, std::span<const double> scores) {
  const auto num_layers = static_cast<int64_t>(scores.size());
  std::vector<int64_t> kept = choice.layers;
  const auto add = [&](int64_t layer) {
    if (static_cast<int64_t>(kept.size()) < choice.num_kept() &&
        std::find(kept.begin(), kept.end(), layer) == kept.end()) {
      kept.push_back(layer);
    }
  };
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    if (choice.forces(layer, num_layers)) add(layer);
  }
  if (choice.layers.empty()) {
    for (const int64_t layer : by_score(scores)) add(layer);
  }
  std::sort(kept.begin(), kept.end());
  return kept;
}

}  // namespace sala
