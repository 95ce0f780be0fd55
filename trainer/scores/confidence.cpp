// Draws, and what they say.
#include "trainer/scores/confidence.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "data/files/hash.h"

namespace sala {

namespace {

// Kept by its score, not by force.
bool contends(const LayerChoice& choice, int64_t layer, size_t num_layers) {
  return !choice.forces(layer, static_cast<int64_t>(num_layers));
}

std::vector<double> spread(std::span<const double> scores,
                           const std::vector<std::vector<double>>& drawn) {
  std::vector<double> errors(scores.size(), 0.0);
  const auto n = static_cast<double>(drawn.size());
  if (drawn.size() < 2) return errors;
  for (size_t l = 0; l < scores.size(); ++l) {
    double mean = 0, squares = 0;
    for (const auto& draw : drawn) mean += draw[l] / n;
    for (const auto& draw : drawn) squares += (draw[l] - mean) * (draw[l] - mean);
    errors[l] = std::sqrt(squares / (n - 1));
  }
  return errors;
}

std::vector<Rivals> find_rivals(const LayerChoice& choice, const std::vector<bool>& is_kept,
                                const std::vector<std::vector<double>>& drawn) {
  std::vector<Rivals> rivals;
  const size_t num_layers = is_kept.size();
  for (size_t i = 0; i < num_layers; ++i) {
    if (!is_kept[i] || !contends(choice, static_cast<int64_t>(i), num_layers)) continue;
    for (size_t j = 0; j < num_layers; ++j) {
      if (is_kept[j]) continue;
      const auto swapped = std::count_if(drawn.begin(), drawn.end(), [&](const auto& draw) {
        return j < i ? draw[j] >= draw[i] : draw[j] > draw[i];  // ties to the lower layer
      });
      const double share = static_cast<double>(swapped) / static_cast<double>(drawn.size());
      if (share < kDoubt) continue;
      rivals.push_back({static_cast<int64_t>(i), static_cast<int64_t>(j), share});
    }
  }
  std::stable_sort(rivals.begin(), rivals.end(),
                   [](const Rivals& a, const Rivals& b) { return a.share > b.share; });
  return rivals;
}

std::string note_of(const Confidence& c) {
  std::string note =
      fmt::format("{:.0f} % of resamples choose the same layers", 100 * c.same_choice);
  constexpr size_t kMostTold = 3;
  for (size_t r = 0; r < std::min(kMostTold, c.rivals.size()); ++r) {
    note += fmt::format("; layers {} and {} cannot be told apart: {:.0f} % of resamples swap them",
                        c.rivals[r].kept, c.rivals[r].dropped, 100 * c.rivals[r].share);
  }
  if (c.rivals.size() > kMostTold) {
    note += fmt::format("; and {} more pairs", c.rivals.size() - kMostTold);
  }
  return note;
}

}  // namespace

std::vector<double> drawn_weights(int64_t num_rows, uint64_t seed, int64_t number) {
  std::vector<double> weights(static_cast<size_t>(num_rows), 0.0);
  for (int64_t i = 0; i < num_rows; ++i) {
    const uint64_t bits = xxh3_64(fmt::format("{}/{}/{}", seed, number, i));
    weights[bits % static_cast<uint64_t>(num_rows)] += 1;
  }
  return weights;
}

Confidence confidence(const LayerChoice& choice, std::span<const double> scores,
                      const std::vector<std::vector<double>>& drawn) {
  Confidence result;
  result.standard_error = spread(scores, drawn);
  result.kept_share.assign(scores.size(), 0.0);
  const std::vector<int64_t> kept = chosen_layers(choice, scores);
  std::vector<bool> is_kept(scores.size(), false);
  for (const int64_t layer : kept) is_kept[static_cast<size_t>(layer)] = true;
  if (drawn.empty()) {
    for (const int64_t layer : kept) result.kept_share[static_cast<size_t>(layer)] = 1;
    return result;
  }
  int64_t same = 0;
  for (const auto& draw : drawn) {
    const std::vector<int64_t> chosen = chosen_layers(choice, draw);
    same += chosen == kept;
    for (const int64_t layer : chosen) result.kept_share[static_cast<size_t>(layer)] += 1;
  }
  const auto num_drawn = static_cast<double>(drawn.size());
  for (double& share : result.kept_share) share /= num_drawn;
  result.same_choice = static_cast<double>(same) / num_drawn;
  if (choice.layers.empty()) result.rivals = find_rivals(choice, is_kept, drawn);
  return result;
}

nlohmann::json choice_record(const LayerChoice& choice, std::span<const double> scores,
                             const Confidence* confidence) {
  nlohmann::json record = {
      {"kept", chosen_layers(choice, scores)}, {"within_noise", false}, {"note", ""}};
  const bool chooses =
      choice.layers.empty() && choice.keep > 0 && choice.keep < static_cast<int64_t>(scores.size());
  if (confidence == nullptr || !chooses) return record;
  record["same_choice"] = confidence->same_choice;
  record["within_noise"] = confidence->same_choice < 1 - kDoubt;
  record["note"] = note_of(*confidence);
  record["rivals"] = nlohmann::json::array();
  for (const Rivals& r : confidence->rivals) {
    record["rivals"].push_back({{"kept", r.kept}, {"dropped", r.dropped}, {"share", r.share}});
  }
  return record;
}

}  // namespace sala
