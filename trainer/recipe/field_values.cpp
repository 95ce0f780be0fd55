// Counts and numbers from text and back; edit distance for did-you-mean.
#include "trainer/recipe/field_values.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>

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

// A plus sign before digits, which from_chars does not take.
bool has_plus(const std::string& text) {
  return text.size() > 1 && text[0] == '+' && text[1] != '-' && text[1] != '+';
}

// Letters, digits and what paths are made of; not a digit or - first.
bool needs_no_quotes(const std::string& text) {
  const auto plain = [](unsigned char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '.' || c == '/';
  };
  return !text.empty() && plain(text[0]) &&
         std::all_of(text.begin(), text.end(), [&](unsigned char c) {
           return plain(c) || (c >= '0' && c <= '9') || c == '-';
         });
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

bool parse_count(const std::string& text, CountRange range, int64_t& value, std::string& error) {
  static const std::string kForm = "a whole number, optionally with K, M or G (1024-based)";
  if (!text.empty() && text[0] == '-') {
    error = fmt::format("must not be negative: {}", shown(text));
    return false;
  }
  int64_t digits = 0;
  const char* begin = text.data() + (has_plus(text) ? 1 : 0);
  const char* end = text.data() + text.size();
  const auto [stop, status] = std::from_chars(begin, end, digits);
  int64_t unit = 1;
  if (stop != end && stop + 1 == end) unit = unit_of(*stop);
  const bool form = status != std::errc::invalid_argument && unit != 0 && stop + 1 >= end;
  if (!form) {
    error = fmt::format("expected {}, but is '{}'", kForm, shown(text));
    if (stop + 1 == end && (*stop == 'k' || *stop == 'm' || *stop == 'g')) {
      const char upper = static_cast<char>(std::toupper(*stop));
      error += fmt::format("; did you mean {}{}?", shown(text.substr(0, text.size() - 1)), upper);
    }
    return false;
  }
  const bool overflows = status == std::errc::result_out_of_range ||
                         digits > std::numeric_limits<int64_t>::max() / unit;
  if (overflows || digits * unit > range.most) {
    error = fmt::format("must be at most {}, but is {}", format_count(range.most), shown(text));
    return false;
  }
  if (digits * unit < range.least) {
    error = fmt::format("must be at least {}, but is {}", range.least, shown(text));
    return false;
  }
  value = digits * unit;
  return true;
}

bool parse_number(const std::string& text, double& value, std::string& error) {
  double parsed = 0;
  const char* begin = text.data() + (has_plus(text) ? 1 : 0);
  const char* end = text.data() + text.size();
  const auto [stop, status] = std::from_chars(begin, end, parsed);
  const bool form = status != std::errc::invalid_argument && stop == end;
  if (!form || std::isnan(parsed) || (status == std::errc() && std::isinf(parsed))) {
    error = fmt::format("expected a number, but is '{}'", shown(text));
    return false;
  }
  if (status == std::errc::result_out_of_range || std::abs(parsed) > kMostNumber) {
    error = fmt::format(
        "expected a number between -{0} and {0} that is not too small for a double, "
        "but is {1}",
        format_number(kMostNumber), shown(text));
    return false;
  }
  value = parsed;
  return true;
}

bool parse_path(const std::string& text, std::string& value, std::string& error) {
  const auto refuse = [&](const std::string& why) {
    error = fmt::format("{} in '{}': write the path out", why, shown(text));
    return false;
  };
  const auto is_control = [](char c) { return static_cast<unsigned char>(c) < 0x20; };
  if (std::any_of(text.begin(), text.end(), is_control)) return refuse("a control character");
  for (size_t at = text.find('$'); at != std::string::npos; at = text.find('$', at + 1)) {
    const char next = at + 1 < text.size() ? text[at + 1] : ' ';
    if (std::isalpha(static_cast<unsigned char>(next)) || next == '_' || next == '{' ||
        next == '(') {
      return refuse("$ is not replaced by a variable's value");
    }
  }
  if (text.empty() || text[0] != '~') {
    value = text;
    return true;
  }
  if (text.size() > 1 && text[1] != '/') return refuse("~ stands for your own home folder only,");
  const char* home = std::getenv("HOME");
  if (home == nullptr || home[0] != '/') return refuse("~ needs HOME to be set, which it is not,");
  value = home + text.substr(1);
  return true;
}

std::string shown(const std::string& text, size_t most_bytes) {
  std::string out;
  size_t used = 0;
  for (; used < text.size() && out.size() < most_bytes; ++used) {
    const auto c = static_cast<unsigned char>(text[used]);
    if (c < 0x20 || c == 0x7f) {
      out += c == '\n' ? "\\n" : c == '\t' ? "\\t" : fmt::format("\\x{:02x}", c);
    } else {
      out += text[used];
    }
  }
  if (used == text.size()) return out;
  // Not in the middle of a UTF-8 sequence.
  while (!out.empty() && (static_cast<unsigned char>(out.back()) & 0xc0) == 0x80) out.pop_back();
  if (!out.empty() && static_cast<unsigned char>(out.back()) >= 0xc0) out.pop_back();
  return fmt::format("{}… ({} bytes)", out, text.size());
}

bool is_plain_name(const std::string& text) {
  const auto is_letter = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
  };
  return !text.empty() && text.size() <= kMostName && is_letter(text[0]) &&
         std::all_of(text.begin(), text.end(),
                     [&](char c) { return is_letter(c) || (c >= '0' && c <= '9') || c == '-'; });
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
  static const std::vector<std::string> kWords = {"true", "false", "null", "yes",
                                                  "no",   "on",    "off"};
  std::string lower = text;
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const bool word = std::find(kWords.begin(), kWords.end(), lower) != kWords.end();
  double number = 0;
  std::string error;
  if (!word && needs_no_quotes(text) && !parse_number(text, number, error)) return text;
  std::string quoted = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      quoted += fmt::format("\\x{:02x}", byte);
      continue;
    }
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + "\"";
}

std::string nearest_word(const std::string& word, const std::vector<std::string>& known) {
  std::string best;
  if (word.size() > kMostName) return best;  // a misspelling of nothing
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
