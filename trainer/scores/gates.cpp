// A bisection for the threshold, its implicit derivative, and Adam.
#include "trainer/scores/gates.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace sala {

namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double sum_above(std::span<const double> logits, double threshold, double tau) {
  double sum = 0;
  for (const double a : logits) sum += sigmoid((a - threshold) / tau);
  return sum;
}

}  // namespace

std::vector<double> soft_choice(std::span<const double> logits, double budget, double tau,
                                double* threshold) {
  const auto [least, most] = std::minmax_element(logits.begin(), logits.end());
  double low = *least - 40 * tau, high = *most + 40 * tau;
  for (int i = 0; i < 100 && high - low > 1e-14 * (1 + std::abs(high)); ++i) {
    const double middle = (low + high) / 2;
    (sum_above(logits, middle, tau) > budget ? low : high) = middle;
  }
  const double m = (low + high) / 2;
  std::vector<double> gates;
  for (const double a : logits) gates.push_back(sigmoid((a - m) / tau));
  if (threshold != nullptr) *threshold = m;
  return gates;
}

// With s_l = g_l (1 - g_l): dg_j / da_l = s_j (delta_jl - s_l / sum s) / tau.
std::vector<double> soft_choice_backward(std::span<const double> gates,
                                         std::span<const double> d_gates, double tau) {
  double sum = 0, weighted = 0;
  for (size_t l = 0; l < gates.size(); ++l) {
    const double s = gates[l] * (1 - gates[l]);
    sum += s;
    weighted += s * d_gates[l];
  }
  std::vector<double> d_logits;
  for (size_t l = 0; l < gates.size(); ++l) {
    const double s = gates[l] * (1 - gates[l]);
    d_logits.push_back(sum > 0 ? s * (d_gates[l] - weighted / sum) / tau : 0);
  }
  return d_logits;
}

Gates::Gates(std::vector<bool> open, int64_t budget, int64_t num_steps, double lr)
    : open_(std::move(open)), num_steps_(num_steps), lr_(lr) {
  for (size_t l = 0; l < open_.size(); ++l) {
    if (!open_[l]) free_.push_back(l);
  }
  const auto n = static_cast<double>(free_.size());
  const auto num_open = static_cast<double>(open_.size() - free_.size());
  // Within the free layers, whatever the recipe asks for: a soft choice of none or all has no
  // threshold.
  final_budget_ = std::clamp(static_cast<double>(budget) - num_open, 0.05 * n, 0.95 * n);
  logits_.assign(free_.size(), 0.0);
  m_ = v_ = logits_;
}

double Gates::free_budget() const {
  const double start = 0.95 * static_cast<double>(free_.size());
  const double gone = std::min(1.0, 2.0 * static_cast<double>(step_) / num_steps_);
  return start + gone * (final_budget_ - start);
}

double Gates::tau() const {
  return std::pow(0.1, static_cast<double>(step_) / static_cast<double>(num_steps_));
}

double Gates::budget() const {
  return free_budget() + static_cast<double>(open_.size() - free_.size());
}

std::vector<double> Gates::values() const {
  std::vector<double> values(open_.size(), 1.0);
  if (free_.empty()) return values;
  const std::vector<double> gates = soft_choice(logits_, free_budget(), tau());
  for (size_t i = 0; i < free_.size(); ++i) values[free_[i]] = gates[i];
  return values;
}

void Gates::step(std::span<const double> d_gates) {
  constexpr double kBeta1 = 0.9, kBeta2 = 0.99, kEps = 1e-12;
  if (!free_.empty()) {
    std::vector<double> d_free;
    for (const size_t l : free_) d_free.push_back(d_gates[l]);
    const auto d_logits =
        soft_choice_backward(soft_choice(logits_, free_budget(), tau()), d_free, tau());
    const auto t = static_cast<double>(step_ + 1);
    const double lr = lr_ * (1 - static_cast<double>(step_) / static_cast<double>(num_steps_));
    for (size_t i = 0; i < free_.size(); ++i) {
      m_[i] = kBeta1 * m_[i] + (1 - kBeta1) * d_logits[i];
      v_[i] = kBeta2 * v_[i] + (1 - kBeta2) * d_logits[i] * d_logits[i];
      const double mean = m_[i] / (1 - std::pow(kBeta1, t));
      const double square = v_[i] / (1 - std::pow(kBeta2, t));
      logits_[i] -= lr * mean / (std::sqrt(square) + kEps);
    }
  }
  ++step_;
}

std::vector<double> Gates::scores() const {
  std::vector<double> scores(open_.size(), 0.0);
  if (free_.empty()) return scores;
  double threshold = 0;
  soft_choice(logits_, final_budget_, tau(), &threshold);
  const double most = *std::max_element(logits_.begin(), logits_.end()) - threshold;
  for (size_t l = 0; l < open_.size(); ++l) scores[l] = most;
  for (size_t i = 0; i < free_.size(); ++i) scores[free_[i]] = logits_[i] - threshold;
  return scores;
}

}  // namespace sala
