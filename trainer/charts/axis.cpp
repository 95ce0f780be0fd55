// Round numbers: 1, 2 and 5 times powers of ten.
#include "trainer/charts/axis.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "trainer/charts/numbers.h"

namespace sala {
namespace {

double round_step(double range, int most_ticks) {
  const double rough = range / std::max(1, most_ticks);
  const double power = std::pow(10, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= rough * (1 - 1e-9)) return factor * power;
  }
  return 10 * power;
}

// Decimals that tell ticks apart that lie `step` apart.
std::string tick_label(double value, double step) {
  if (std::abs(value) >= 1000 || step >= 1000) return amount(value);
  if (value != 0 && std::abs(value) < 1e-3) return fmt::format("{:.2g}", value);
  const int decimals = std::max(0, static_cast<int>(std::ceil(-std::log10(step) - 1e-9)));
  return fixed(value, std::min(decimals, 6));
}

void add_tick(Axis& axis, double value, const std::string& label) {
  if (!axis.ticks.empty() && axis.ticks.back().label == label) return;
  axis.ticks.push_back({axis.place(value), label});
}

void add_linear_ticks(Axis& axis, int most_ticks, bool round) {
  const double step = round_step(axis.high - axis.low, most_ticks);
  if (round) {
    axis.low = std::floor(axis.low / step + 1e-9) * step;
    axis.high = std::ceil(axis.high / step - 1e-9) * step;
  }
  const double first = std::ceil(axis.low / step - 1e-9);
  for (double i = 0; i <= 2.0 * most_ticks + 2; ++i) {
    const double value = (first + i) * step;
    if (value > axis.high + 1e-9 * step) break;
    add_tick(axis, value, tick_label(value, step));
  }
}

void add_log_ticks(Axis& axis, int most_ticks, bool round) {
  if (round) {
    axis.low = std::pow(10, std::floor(std::log10(axis.low) + 1e-9));
    axis.high = std::pow(10, std::ceil(std::log10(axis.high) - 1e-9));
  }
  const double decades = std::log10(axis.high / axis.low);
  const int every = std::max(1, static_cast<int>(std::ceil(decades / most_ticks)));
  const bool between = decades * 3 <= most_ticks;
  for (int power = static_cast<int>(std::floor(std::log10(axis.low)));
       power <= std::log10(axis.high) + 1e-9; power += every) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      const double value = factor * std::pow(10, power);
      if (factor > 1 && !between) break;
      if (value < axis.low * (1 - 1e-9) || value > axis.high * (1 + 1e-9)) continue;
      add_tick(axis, value, value >= 1e-3 ? amount(value) : fmt::format("{:.0e}", value));
    }
  }
}

}  // namespace

double Axis::place(double value) const {
  const double share = log ? std::log(std::max(value, low) / low) / std::log(high / low)
                           : (value - low) / (high - low);
  return std::clamp(share, 0.0, 1.0);
}

Axis make_axis(double low, double high, int most_ticks, bool log, bool round) {
  Axis axis;
  if (!(std::isfinite(low) && std::isfinite(high))) low = 0, high = 1;
  if (low > high) std::swap(low, high);
  axis.log = log && low > 0;
  const double least = std::max(std::abs(high), 1e-12) * 1e-6;
  if (high - low < least) {  // one value, or as good as one
    const double widen = high == 0 ? 1 : std::abs(high) * 0.1;
    low = axis.log ? low / 1.2 : low - widen;
    high = axis.log ? high * 1.2 : high + widen;
  }
  axis.low = low, axis.high = high;
  axis.log ? add_log_ticks(axis, most_ticks, round) : add_linear_ticks(axis, most_ticks, round);
  if (axis.ticks.size() < 2) {
    axis.ticks.clear();
    for (const double end : {axis.low, axis.high}) {
      axis.ticks.push_back({axis.place(end), significant(end, 3)});
    }
  }
  return axis;
}

}  // namespace sala
