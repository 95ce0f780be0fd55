// A heat map as a table: every cell says its number and is coloured by it, so that it can be read
// by ear, copied and printed.
#pragma once

#include <string>
#include <vector>

#include "trainer/charts/numbers.h"

namespace sala {

struct HeatMap {
  std::string title;   // plain text
  std::string corner;  // above the row headings: "depth"
  std::vector<std::string> columns, rows;
  struct Cell {
    Maybe share;       // 0 to 1, the colour; none: an empty cell
    std::string text;  // "0.88"
    std::string note;  // what a pointer over it shows
  };
  std::vector<std::vector<Cell>> cells;  // rows x columns
};

std::string draw(const HeatMap& map);  // nothing without cells

}  // namespace sala
