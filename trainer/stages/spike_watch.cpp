// Bands of loss and gradient norm.
#include "trainer/stages/spike_watch.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace sala {

namespace {

constexpr size_t kWindow = 64, kFewest = 16;  // steps
constexpr double kDeviations = 10, kTimes = 2;

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

double upper_end(const std::deque<double>& last) {
  const double center = median({last.begin(), last.end()});
  std::vector<double> distances;
  for (double value : last) distances.push_back(std::abs(value - center));
  return std::max(center + kDeviations * median(std::move(distances)), kTimes * center);
}

// Empty, or what is said of `value`, which then belongs to the band.
std::string look(std::deque<double>& last, double value, const char* name) {
  std::string text;
  if (last.size() >= kFewest) {
    const double end = upper_end(last);
    if (value > end) {
      text = fmt::format("{} {:.4g} (the band of the last {} steps ends at {:.4g})", name, value,
                         last.size(), end);
    }
  }
  last.push_back(value);
  if (last.size() > kWindow) last.pop_front();
  return text;
}

}  // namespace

std::string SpikeWatch::add(double loss, double grad_norm) {
  const std::string first = look(losses_, loss, "loss");
  const std::string second = look(norms_, grad_norm, "gradient norm");
  return first.empty() || second.empty() ? first + second : first + ", " + second;
}

nlohmann::json SpikeWatch::state() const { return {{"losses", losses_}, {"norms", norms_}}; }

void SpikeWatch::restore(const nlohmann::json& state) {
  losses_ = state.at("losses").get<std::deque<double>>();
  norms_ = state.at("norms").get<std::deque<double>>();
}

}  // namespace sala
