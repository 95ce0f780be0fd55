// Text as HTML that is XML too: every element is closed, every text escaped.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace sala {

// For content and for attributes in double quotes. What is not UTF-8, and control characters that
// XML forbids, become U+FFFD.
std::string escaped(std::string_view text);

// <tag attributes>content</tag>; `attributes` ("class=\"a\"") and `content` are markup.
std::string element(const std::string& tag, const std::string& attributes,
                    const std::string& content);

// A section of the page with a heading; nothing where `content` is empty.
std::string section(const std::string& id, const std::string& heading, const std::string& content);
std::string paragraph(const std::string& text);  // of plain text, quieter than the rest
std::string folded(const std::string& summary, const std::string& content);  // <details>

// A table that scrolls sideways where it is too wide; its first column is a heading of each row.
struct HtmlTable {
  std::string caption;               // plain text
  std::vector<std::string> columns;  // plain text; the first is above the row headings
  struct Row {
    std::string heading;             // plain text
    std::vector<std::string> cells;  // plain text, in the order of columns
    bool group = false;              // a heading over the rows that follow, without cells
  };
  std::vector<Row> rows;
  bool numbers = true;  // cells are set right, with equal digits

  std::string html() const;  // empty without rows
};

// Names with values, one under the other; values are markup.
using FactList = std::vector<std::pair<std::string, std::string>>;
std::string fact_list(const FactList& facts);

}  // namespace sala
