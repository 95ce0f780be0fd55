// Which layers keep softmax attention, given how much each matters. The swap stage chooses by this,
// and the score stage asks it how sure the choice is.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace sala {

struct LayerChoice {
  int64_t keep = 0;             // layers chosen by score
  std::vector<int64_t> layers;  // or these
  bool force_ends = true;       // the first and the last layer are among the chosen ones

  int64_t num_kept() const { return layers.empty() ? keep : static_cast<int64_t>(layers.size()); }
  // Kept whatever its score is.
  bool forces(int64_t layer, int64_t num_layers) const {
    return layers.empty() && keep > 0 && force_ends && (layer == 0 || layer == num_layers - 1);
  }
};

// Every layer by its score (L), best first, ties to the lower layer.
std::vector<int64_t> by_score(std::span<const double> scores);
// The kept layers, ascending, as many as there are at most.
std::vector<int64_t> chosen_layers(const LayerChoice& choice, std::span<const double> scores);

}  // namespace sala
