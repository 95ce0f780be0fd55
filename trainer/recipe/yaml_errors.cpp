// The usual mistakes behind the parser's complaints.
#include "trainer/recipe/yaml_errors.h"

#include <algorithm>
#include <sstream>
#include <vector>

#include <fmt/format.h>

#include "trainer/recipe/field_values.h"

namespace sala {

namespace {

struct Advice {
  const char* parser_says;  // in the parser's message
  const char* we_say;
};

// The first that matches holds.
const Advice kAdvice[] = {
    {"found while scanning alias", "* begins an alias (*name): put a pattern in quotes, \"*.h5\""},
    {"alias not found after *", "* begins an alias (*name): put a pattern in quotes, \"*.h5\""},
    {"anchor is not defined",
     "* begins an alias, and no anchor (&name) before it has its name: put "
     "a pattern in quotes, \"*.h5\""},
    {"anchor", "& begins an anchor (&name): put a text that begins with & in quotes"},
    {"tab", "a tab: YAML is indented with spaces only"},
    {"end of map flow", "a { is not closed with }"},
    {"end of sequence flow", "a [ is not closed with ]"},
    {"illegal flow end", "a } or ] closes nothing that is open"},
    {"EOF in scalar", "a quote is opened and not closed"},
    {"document indicator in scalar", "a quote is opened and not closed before ---"},
    {"escape", "a \\ in double quotes begins an escape: write \\\\, or use single quotes"},
    {"hexadecimal", "a \\ in double quotes begins an escape: write \\\\, or use single quotes"},
    {"unicode", "a \\ in double quotes begins an escape: write \\\\, or use single quotes"},
    {"map value",
     "a ':' where no value can begin: put a text that holds ': ' in quotes, and look "
     "at the indentation"},
    {"map key", "a key where none can be: look at the indentation"},
    {"block entry", "a '- ' where no list element can be: look at the indentation"},
    {"end of map", "the indentation does not fit the lines before, or a ':' is missing"},
    {"end of sequence", "the indentation does not fit the lines before, or a '- ' is missing"},
    {"unknown token", "no value can begin with this character: put the text in quotes"},
    {"tag", "! begins a tag: put a text that begins with ! in quotes"},
    {"directive", "% begins a directive: put a text that begins with % in quotes"},
    {"bad file", "lists and mappings are nested too deeply"},
};

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// Where a tab stands among the spaces that a line begins with; npos when there is none.
size_t tab_in_indentation(const std::string& line) {
  const size_t text = line.find_first_not_of(" \t");
  const size_t tab = line.find('\t');
  return tab < std::min(text, line.size()) ? tab : std::string::npos;
}

}  // namespace

std::string explain_yaml_error(const std::string& text, const std::string& parser_message,
                               YamlPlace& place) {
  const std::vector<std::string> lines = lines_of(text);
  // The parser takes a tab for text and stumbles at one of the next lines.
  const int last = std::min(place.line, static_cast<int>(lines.size()));
  for (int line = last; line >= 1 && line > last - 3; --line) {
    const size_t tab = tab_in_indentation(lines[static_cast<size_t>(line - 1)]);
    if (tab == std::string::npos) continue;
    place.line = line;
    place.column = static_cast<int>(tab) + 1;
    return "not valid YAML: a tab in the indentation: use spaces only";
  }
  for (const Advice& advice : kAdvice) {
    if (parser_message.find(advice.parser_says) != std::string::npos) {
      return fmt::format("not valid YAML: {}", advice.we_say);
    }
  }
  return fmt::format("not valid YAML: {}", shown(parser_message));
}

bool is_open_quote(const std::string& text, const YamlPlace& place) {
  size_t at = 0;
  for (int line = 1; line < place.line && at != std::string::npos; ++line) {
    at = text.find('\n', at);
    if (at != std::string::npos) ++at;
  }
  if (at == std::string::npos) return false;
  at += static_cast<size_t>(place.column - 1);
  if (at >= text.size() || (text[at] != '"' && text[at] != '\'')) return false;
  const char quote = text[at];
  for (++at; at < text.size(); ++at) {
    if (quote == '"' && text[at] == '\\') {
      ++at;
    } else if (text[at] == quote) {
      if (quote == '"' || at + 1 == text.size() || text[at + 1] != quote) return false;
      ++at;  // '' stands for one
    }
  }
  return true;
}

}  // namespace sala
