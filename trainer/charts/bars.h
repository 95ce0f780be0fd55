// Bars: one per item with its error, and one bar cut into parts.
#pragma once

#include <string>
#include <vector>

#include "trainer/charts/numbers.h"

namespace sala {

struct Bar {
  std::string label;  // below the bar, where there is room
  Maybe value, error;
  std::string color;  // class of style.css
  std::string note;   // what a pointer over it shows
};

struct BarChart {
  std::string title, unit, x_label, summary;
  std::string legend;  // markup (plot.h)
  std::vector<Bar> bars;
};

// From 0 up, or down where values are negative. Nothing without a finite value.
std::string draw(const BarChart& chart);

struct Part {
  std::string name;
  double value = 0;   // at least 0
  std::string color;  // class of style.css
};

// A bar of full width, cut in proportion. Nothing where all parts are 0.
std::string stacked_bar(const std::vector<Part>& parts, const std::string& summary);

}  // namespace sala
