// Values of recipe keys as text, both ways, and the spelling help for keys and choices.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sala {

// Digits with an optional K (1,024), M (1,024^2) or G (1,024^3). Otherwise false, with the reason.
bool parse_count(const std::string& text, int64_t& value, std::string& error);
bool parse_number(const std::string& text, double& value, std::string& error);

std::string format_count(int64_t value);           // the largest unit that divides it: 8M, 1536
std::string format_number(double value);           // reads back to the same double
std::string format_text(const std::string& text);  // quoted where YAML needs it

// "; did you mean 'tokens'?", or the list of what there is, or nothing when there is nothing.
std::string suggest(const std::string& word, const std::vector<std::string>& known);
// The known word that `word` is a misspelling of; empty when none is near.
std::string nearest_word(const std::string& word, const std::vector<std::string>& known);

}  // namespace sala
