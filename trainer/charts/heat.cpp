// Cells whose colour is laid under their text in a strength that the cell states.
#include "trainer/charts/heat.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "trainer/charts/html.h"

namespace sala {
namespace {

std::string cell_html(const HeatMap::Cell& cell) {
  if (!cell.share || !std::isfinite(*cell.share)) {
    return element("td", "class=\"none\"", escaped(kNoValue));
  }
  const double share = std::clamp(*cell.share, 0.0, 1.0);
  constexpr double kTextTurns = 0.5;  // from here on the colour wants the other text colour
  return element("td",
                 fmt::format("class=\"{}\" style=\"--v:{:.3f}\" title=\"{}\"",
                             share >= kTextTurns ? "strong" : "weak", share, escaped(cell.note)),
                 element("span", "", escaped(cell.text)));
}

}  // namespace

std::string draw(const HeatMap& map) {
  if (map.rows.empty() || map.columns.empty()) return "";
  std::string head = element("th", "scope=\"col\"", escaped(map.corner)), body;
  for (const std::string& column : map.columns) {
    head += element("th", "scope=\"col\"", escaped(column));
  }
  for (size_t r = 0; r < map.rows.size(); ++r) {
    std::string cells = element("th", "scope=\"row\"", escaped(map.rows[r]));
    for (const HeatMap::Cell& cell : map.cells[r]) cells += cell_html(cell);
    body += element("tr", "", cells) + "\n";
  }
  return fmt::format(
      "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\">"
      "<table class=\"heat\"><caption>{0}</caption>\n<thead><tr>{1}</tr></thead>\n"
      "<tbody>\n{2}</tbody></table></div>\n",
      escaped(map.title), head, body);
}

}  // namespace sala
