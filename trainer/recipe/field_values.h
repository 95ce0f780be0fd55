// Values of recipe keys as text, both ways, and the spelling help for keys and choices.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/recipe/fields.h"

namespace sala {

// Digits with an optional K (1,024), M (1,024^2) or G (1,024^3). Otherwise false, with the reason.
bool parse_count(const std::string& text, CountRange range, int64_t& value, std::string& error);
bool parse_number(const std::string& text, double& value, std::string& error);
// `~` and `~/x` begin with the home folder. What only a shell can make sense of is refused.
bool parse_path(const std::string& text, std::string& value, std::string& error);

// Text from a file for a message: one line, control characters escaped, cut where it is long.
std::string shown(const std::string& text, size_t most_bytes = 80);
// Letters, digits, _ and -, a letter first, at most kMostName: names become folder names and parts
// of --set keys.
inline constexpr size_t kMostName = 64;
bool is_plain_name(const std::string& text);

std::string format_count(int64_t value);           // the largest unit that divides it: 8M, 1536
std::string format_number(double value);           // reads back to the same double
std::string format_text(const std::string& text);  // quoted where YAML needs it

// "; did you mean 'tokens'?", or the list of what there is, or nothing when there is nothing.
std::string suggest(const std::string& word, const std::vector<std::string>& known);
// The known word that `word` is a misspelling of; empty when none is near.
std::string nearest_word(const std::string& word, const std::vector<std::string>& known);

}  // namespace sala
