// Formatting of numbers, without locale.
#include "trainer/charts/numbers.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <ctime>
#include <utility>

namespace sala {
namespace {

bool shows(const Maybe& value) { return value && std::isfinite(*value); }

// Without zeros behind the last digit that says something.
std::string trimmed(std::string text) {
  if (text.find('.') == std::string::npos) return text;
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text;
}

}  // namespace

std::string fixed(Maybe value, int decimals) {
  if (!shows(value)) return kNoValue;
  std::string text = fmt::format("{:.{}f}", *value, decimals);
  if (text.find_first_not_of("-0.") == std::string::npos && text.front() == '-') text.erase(0, 1);
  return text;
}

std::string significant(Maybe value, int digits) {
  if (!shows(value)) return kNoValue;
  const double size = std::abs(*value);
  if (size == 0) return "0";
  if (size < 1e-3 || size >= 1e7) return fmt::format("{:.{}e}", *value, digits - 1);
  const int before = static_cast<int>(std::floor(std::log10(size))) + 1;
  if (before > 3) return grouped(*value);
  return fixed(value, std::max(0, digits - before));
}

std::string percent(Maybe share, int decimals) {
  return shows(share) ? fixed(*share * 100, decimals) + "\u00a0%" : kNoValue;
}

std::string grouped(double count) {
  if (!std::isfinite(count)) return kNoValue;
  if (std::abs(count) >= 1e15) return fmt::format("{:.3g}", count);
  std::string text = fmt::format("{:.0f}", count);
  const size_t first = text.front() == '-' ? 1 : 0;
  for (size_t at = text.size(); at > first + 3;) text.insert(at -= 3, ",");
  return text;
}

std::string amount(Maybe value) {
  if (!shows(value)) return kNoValue;
  const double size = std::abs(*value);
  for (const auto& [unit, letter] : {std::pair{1e12, "T"}, {1e9, "B"}, {1e6, "M"}, {1e3, "K"}}) {
    if (size < 0.9995 * unit) continue;
    const double shown = *value / unit;
    return trimmed(fmt::format("{:.{}f}", shown, std::abs(shown) < 99.95 ? 1 : 0)) + letter;
  }
  if (size == 0) return "0";
  return size < 1 ? trimmed(fmt::format("{:.2g}", *value)) : trimmed(fixed(value, 1));
}

std::string length_text(Maybe tokens) {
  if (!shows(tokens)) return kNoValue;
  for (const auto& [unit, letter] : {std::pair{1048576.0, "M"}, {1024.0, "K"}}) {
    if (*tokens >= unit && std::fmod(*tokens, unit) == 0) return grouped(*tokens / unit) + letter;
  }
  return grouped(*tokens);
}

std::string duration(Maybe seconds) {
  if (!shows(seconds) || *seconds < 0 || *seconds > 1e12) return kNoValue;
  if (*seconds > 0 && *seconds < 0.0995) return fmt::format("{:.0f} ms", 1000 * *seconds);
  if (*seconds < 9.95) return fmt::format("{:.1f} s", *seconds);
  const auto all = static_cast<int64_t>(std::llround(*seconds));
  if (all < 60) return fmt::format("{} s", all);
  if (all < 3600) return fmt::format("{} min {:02} s", all / 60, all % 60);
  if (all < 86400) return fmt::format("{} h {:02} min", all / 3600, all % 3600 / 60);
  return fmt::format("{} d {} h", all / 86400, all % 86400 / 3600);
}

std::string storage(Maybe bytes) {
  if (!shows(bytes)) return kNoValue;
  for (const auto& [unit, name] : {std::pair{1e12, "TB"}, {1e9, "GB"}, {1e6, "MB"}}) {
    if (*bytes >= unit) return fmt::format("{} {}", significant(*bytes / unit, 3), name);
  }
  return fmt::format("{:.0f} KB", *bytes / 1e3);
}

std::string moment(Maybe epoch_seconds) {
  if (!shows(epoch_seconds) || std::abs(*epoch_seconds) > 1e11) return kNoValue;
  const auto seconds = static_cast<std::time_t>(*epoch_seconds);
  std::tm utc{};
  if (gmtime_r(&seconds, &utc) == nullptr) return kNoValue;
  std::array<char, 64> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M UTC", &utc);
  return text.data();
}

std::string with_error(Maybe value, Maybe error, int decimals) {
  const std::string text = fixed(value, decimals);
  if (!shows(value) || !shows(error)) return text;
  return text + " \u00b1 " + fixed(error, decimals);
}

}  // namespace sala
