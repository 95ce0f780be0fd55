// Escaping, elements and tables.
#include "trainer/charts/html.h"

#include <fmt/format.h>

#include <cstdint>

namespace sala {
namespace {

constexpr const char* kReplacement = "\xEF\xBF\xBD";

// Bytes of the well-formed UTF-8 character at the front of `text` that XML allows; 0 = none.
size_t character_bytes(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) {
    return first >= 0x20 ? first != 0x7F : first == '\t' || first == '\n' || first == '\r';
  }
  const size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || text.size() < length) return 0;
  uint32_t code = first & (0x7FU >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
    code = code << 6 | (byte(i) & 0x3F);
  }
  constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool allowed = code >= kLeast[length] && code <= 0x10FFFF &&
                       (code < 0xD800 || code > 0xDFFF) && (code & 0xFFFE) != 0xFFFE;
  return allowed ? length : 0;
}

}  // namespace

std::string escaped(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const size_t length = character_bytes(text.substr(at));
    const char c = text[at];
    if (length == 0) {
      out += kReplacement;
    } else if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '"') {
      out += "&quot;";
    } else {
      out += text.substr(at, length);
    }
    at += length == 0 ? 1 : length;
  }
  return out;
}

std::string element(const std::string& tag, const std::string& attributes,
                    const std::string& content) {
  return fmt::format("<{}{}{}>{}</{}>", tag, attributes.empty() ? "" : " ", attributes, content,
                     tag);
}

std::string section(const std::string& id, const std::string& heading, const std::string& content) {
  if (content.empty()) return "";
  return fmt::format("<section aria-labelledby=\"{}\">\n<h2 id=\"{}\">{}</h2>\n{}</section>\n", id,
                     id, escaped(heading), content);
}

std::string paragraph(const std::string& text) {
  return element("p", "class=\"quiet\"", escaped(text)) + "\n";
}

std::string folded(const std::string& summary, const std::string& content) {
  return element("details", "", element("summary", "", escaped(summary)) + "\n" + content) + "\n";
}

std::string HtmlTable::html() const {
  if (rows.empty()) return "";
  std::string head, body;
  for (const std::string& column : columns) {
    head += element("th", "scope=\"col\"", escaped(column));
  }
  for (const Row& row : rows) {
    if (row.group) {
      const std::string spans = fmt::format("scope=\"rowgroup\" colspan=\"{}\"", columns.size());
      body += element("tr", "class=\"group\"", element("th", spans, escaped(row.heading))) + "\n";
      continue;
    }
    std::string cells = element("th", "scope=\"row\"", escaped(row.heading));
    for (const std::string& cell : row.cells) cells += element("td", "", escaped(cell));
    body += element("tr", "", cells) + "\n";
  }
  const std::string title = caption.empty() ? "" : element("caption", "", escaped(caption));
  // Focusable: who has no mouse scrolls it by the keyboard.
  return fmt::format(
      "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{}\"><table{}>{}\n"
      "<thead><tr>{}</tr></thead>\n<tbody>\n{}</tbody></table></div>\n",
      escaped(caption.empty() ? columns.front() : caption), numbers ? " class=\"numbers\"" : "",
      title, head, body);
}

std::string fact_list(const FactList& facts) {
  std::string list;
  for (const auto& [name, value] : facts) {
    list += element("div", "", element("dt", "", escaped(name)) + element("dd", "", value)) + "\n";
  }
  return element("dl", "", list) + "\n";
}

}  // namespace sala
