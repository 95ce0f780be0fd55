// What is wrong with a text that is no YAML, in our own words: the parser's name neither the usual
// mistake nor what to do about it.
#pragma once

#include <string>

#include "trainer/recipe/yaml_reader.h"

namespace sala {

// `parser_message` at line and column (from 1) of `text`. The place may be moved to the mistake.
std::string explain_yaml_error(const std::string& text, const std::string& parser_message,
                               YamlPlace& place);

// Whether the text at `place` begins with a quote that nothing closes, which the parser takes for a
// text up to the end of the file.
bool is_open_quote(const std::string& text, const YamlPlace& place);

}  // namespace sala
