// Counts and numbers from text and back; edit distance for did-you-mean.
#include "trainer/field_values.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <limits>
#include <numeric>
#include <regex>

#include <fmt/format.h>

namespace sala {

namespace {

constexpr int64_t kKilo = 1024;

int64_t unit_of(char letter) {
  switch (letter) {
    case 'K':
      return kKilo;
    case 'M':
      return kKilo * kKilo;
    case 'G':
      return kKilo * kKilo * kKilo;
  }
  return 0;
}

// Edits (insert, delete, replace, swap of neighbours) between two words.
size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  std::iota(d[0].begin(), d[0].end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t change = a[i - 1] == b[j - 1] ? 0 : 1;
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + change});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
      }
    }
  }
  return d[a.size()][b.size()];
}

}  // namespace

bool parse_count(const std::string& text, int64_t& value, std::string& error) {
  static const std::string kForm = "a whole number, optionally with K, M or G (1024-based)";
  if (!text.empty() && text[0] == '-') {
    error = fmt::format("must not be negative: {}", text);
    return false;
  }
  int64_t digits = 0;
  const char* end = text.data() + text.size();
  const auto [stop, status] = std::from_chars(text.data(), end, digits);
  int64_t unit = 1;
  if (stop != end && stop + 1 == end) unit = unit_of(*stop);
  const bool form = status != std::errc::invalid_argument && unit != 0 && stop + 1 >= end;
  if (!form) {
    error = fmt::format("expected {}, but is '{}'", kForm, text);
    if (stop + 1 == end && (*stop == 'k' || *stop == 'm' || *stop == 'g')) {
      const char upper = static_cast<char>(std::toupper(*stop));
      error += fmt::format("; did you mean {}{}?", text.substr(0, text.size() - 1), upper);
    }
    return false;
  }
  if (status == std::errc::result_out_of_range ||
      digits > std::numeric_limits<int64_t>::max() / unit) {
    error = fmt::format("too large: {}", text);
    return false;
  }
  value = digits * unit;
  return true;
}

bool parse_number(const std::string& text, double& value, std::string& error) {
  double parsed = 0;
  const char* end = text.data() + text.size();
  const auto [stop, status] = std::from_chars(text.data(), end, parsed);
  if (status != std::errc() || stop != end || !std::isfinite(parsed)) {
    error = fmt::format("expected a number, but is '{}'", text);
    return false;
  }
  value = parsed;
  return true;
}

std::string format_count(int64_t value) {
  for (const char letter : {'G', 'M', 'K'}) {
    const int64_t unit = unit_of(letter);
    if (value >= unit && value % unit == 0) return fmt::format("{}{}", value / unit, letter);
  }
  return std::to_string(value);
}

std::string format_number(double value) { return fmt::format("{}", value); }

std::string format_text(const std::string& text) {
  static const std::regex kPlain("[A-Za-z_./][A-Za-z0-9_./-]*");
  static const std::vector<std::string> kWords = {"true", "false", "null", "yes",
                                                  "no",   "on",    "off"};
  std::string lower = text;
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const bool word = std::find(kWords.begin(), kWords.end(), lower) != kWords.end();
  double number = 0;
  std::string error;
  if (!word && std::regex_match(text, kPlain) && !parse_number(text, number, error)) return text;
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    if (c == '\n') {
      quoted += "\\n";
    } else if (c == '\t') {
      quoted += "\\t";
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

std::string nearest_word(const std::string& word, const std::vector<std::string>& known) {
  std::string best;
  size_t best_distance = std::max<size_t>(1, word.size() / 3) + 1;
  for (const std::string& candidate : known) {
    const size_t distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

std::string suggest(const std::string& word, const std::vector<std::string>& known) {
  const std::string near = nearest_word(word, known);
  if (!near.empty()) return fmt::format("; did you mean '{}'?", near);
  return known.empty() ? "" : fmt::format("; there are: {}", fmt::join(known, ", "));
}

}  // namespace sala
