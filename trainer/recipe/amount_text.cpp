// Bytes, seconds and counts with the unit that reads best.
#include "trainer/recipe/amount_text.h"

#include <utility>

#include <fmt/format.h>

namespace sala {

std::string bytes_text(double bytes) {
  if (bytes >= 1e12) return fmt::format("{:.2f} TB", bytes / 1e12);
  if (bytes >= 1e9) return fmt::format("{:.1f} GB", bytes / 1e9);
  return fmt::format("{:.0f} MB", bytes / 1e6);
}

std::string time_text(double seconds) {
  if (seconds >= 2 * 86400) return fmt::format("{:.1f} days", seconds / 86400);
  if (seconds >= 2 * 3600) return fmt::format("{:.1f} h", seconds / 3600);
  if (seconds >= 120) return fmt::format("{:.0f} min", seconds / 60);
  return fmt::format("{:.0f} s", seconds);
}

std::string amount_text(double value) {
  for (const auto& [unit, letter] : {std::pair{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "K"}}) {
    if (value >= 10 * unit || (value >= unit && unit > 1e3)) {
      return fmt::format("{:.1f}{}", value / unit, letter);
    }
  }
  return fmt::format("{:.0f}", value);
}

}  // namespace sala
