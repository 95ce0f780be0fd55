// Beginning and end of a stage, compared.
#include "trainer/stages/loss_watch.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>

namespace sala {

namespace {

constexpr size_t kWindow = 10;    // steps that stand for a stage's beginning and for its end
constexpr size_t kUntouched = 5;  // losses among which the model's own is looked for
constexpr int64_t kInARow = 3;

double mean(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// Square of the standard error of the mean.
double squared_error(std::span<const double> values) {
  const double center = mean(values);
  double squares = 0;
  for (double value : values) squares += (value - center) * (value - center);
  const auto n = static_cast<double>(values.size());
  return squares / (n * (n - 1));
}

}  // namespace

void LossWatch::add(double loss) {
  ++num_;
  if (first_.size() < kWindow) first_.push_back(loss);
  last_.push_back(loss);
  if (last_.size() > kWindow) last_.erase(last_.begin());
  num_above_ = loss > destroyed() ? num_above_ + 1 : 0;
}

double LossWatch::began() const {
  return *std::min_element(first_.begin(), first_.begin() + std::min(kUntouched, first_.size()));
}

double LossWatch::destroyed() const { return 2 * began() + 1; }

bool LossWatch::diverged() const { return num_above_ >= kInARow; }

std::optional<LossWatch::Comparison> LossWatch::compare() const {
  const auto n = static_cast<size_t>(std::min<int64_t>(kWindow, num_ / 2));  // never overlapping
  if (n < 2) return std::nullopt;
  const std::span<const double> begin = std::span(first_).first(n), end = std::span(last_).last(n);
  const double first = mean(begin), ended = mean(end);
  const double noise = 3 * std::sqrt(squared_error(begin) + squared_error(end));
  if (ended - first > std::max(noise, 0.02 * first)) return Comparison{first, ended, true};
  // A model that was destroyed within the first window makes that window no measure. The lowest of
  // a few losses lies about one standard deviation of a loss below their mean; and what would be
  // divergence is worse whatever the noise.
  const double deviation = std::sqrt(squared_error(end) * static_cast<double>(n));
  const double clear = began() + std::max(5 * deviation, 0.1 * began());
  if (ended > std::min(clear, destroyed())) {
    return Comparison{began(), ended, true};
  }
  return Comparison{first, ended, false};
}

nlohmann::json LossWatch::state() const {
  return {{"first", first_}, {"last", last_}, {"num", num_}, {"num_above", num_above_}};
}

void LossWatch::restore(const nlohmann::json& state) {
  first_ = state.at("first").get<std::vector<double>>();
  last_ = state.at("last").get<std::vector<double>>();
  num_ = state.at("num").get<int64_t>();
  num_above_ = state.at("num_above").get<int64_t>();
}

}  // namespace sala
