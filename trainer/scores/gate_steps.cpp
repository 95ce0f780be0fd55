// Weighted means, and steps to and from JSON.
#include "trainer/scores/gate_steps.h"

#include <map>

namespace sala {

std::vector<double> mean_of(const GateStep& step, std::span<const double> weights) {
  std::vector<double> mean(step.values.at(0).size(), 0.0);
  double total = 0;
  for (size_t r = 0; r < step.rows.size(); ++r) {
    const double weight = weights[static_cast<size_t>(step.rows[r])];
    total += weight;
    for (size_t i = 0; i < mean.size(); ++i) mean[i] += weight * step.values[r][i];
  }
  if (total == 0) return {};
  for (double& x : mean) x /= total;
  return mean;
}

nlohmann::json to_json(const GateStep& step, int64_t number) {
  return {{"step", number}, {"documents", step.rows}, {"values", step.values}};
}

std::vector<GateStep> gate_steps(const std::vector<nlohmann::json>& items) {
  std::map<int64_t, const nlohmann::json*> found;
  for (const nlohmann::json& item : items) found.emplace(item.at("step").get<int64_t>(), &item);
  std::vector<GateStep> steps;
  for (const auto& [number, item] : found) {
    if (number != static_cast<int64_t>(steps.size())) break;
    steps.push_back({item->at("documents"), item->at("values")});
  }
  return steps;
}

}  // namespace sala
