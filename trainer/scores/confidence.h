// How sure a choice of layers is: the rows that scores come from are drawn again, with replacement
// (Efron's bootstrap), and the choice is made with each draw.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "trainer/recipe/layer_choice.h"

namespace sala {

// How often each of `num_rows` rows is in draw `number` of as many rows; by `seed` alone.
std::vector<double> drawn_weights(int64_t num_rows, uint64_t seed, int64_t number);

// Two layers, one kept and one not, and the share of draws in which their order is the other way.
struct Rivals {
  int64_t kept, dropped;
  double share;
};

struct Confidence {
  std::vector<double> standard_error;  // (L) of each score, over the draws
  std::vector<double> kept_share;      // (L) of draws that keep the layer
  double same_choice = 1;              // share of draws that keep exactly the same layers
  std::vector<Rivals> rivals;          // swapped in kDoubt of the draws or more, most often first
};
inline constexpr double kDoubt = 0.05;

// `drawn`: scores (L) of each draw.
Confidence confidence(const LayerChoice& choice, std::span<const double> scores,
                      const std::vector<std::vector<double>>& drawn);

// What is said of a choice: {"kept", "within_noise", "note"}, and where scores were drawn again
// "same_choice" and "rivals": [{"kept", "dropped", "share"}].
nlohmann::json choice_record(const LayerChoice& choice, std::span<const double> scores,
                             const Confidence* confidence);

}  // namespace sala
