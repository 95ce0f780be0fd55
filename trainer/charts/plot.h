// Lines over an axis, as HTML with inline SVG that takes the width it is given: the drawing is
// stretched, its strokes are not, and labels are text of the page, so that they are as easy to read
// on a phone as on a desk. No script.
#pragma once

#include <string>
#include <vector>

#include "trainer/charts/axis.h"

namespace sala {

struct Point {
  double x, y;
  std::string note;  // of a dot: what a pointer over it shows
};

struct Line {
  std::string name;   // in the legend; empty: not in it
  std::string color;  // class of style.css: "teacher", "c1" … "c6", "warn"
  std::vector<Point> points;
  enum class Kind { kLine, kThin, kDashed, kDots, kDotsAndLine } kind = Kind::kLine;
  bool own_scale = false;  // 0 at the bottom, its largest value at the top: no axis tells it
};

struct Band {  // of the values that one x stands for; drawn faintly, a point where both are equal
  double x, low, high;
};

struct Marks {        // x of what has no value: ticks at the upper edge
  std::string name;   // in the legend
  std::string color;  // as a line's
  std::vector<double> at;
};

struct Plot {
  std::string title;    // plain text
  std::string unit;     // beside the title: "nats per token"
  std::string x_label;  // below the axis
  std::string summary;  // for who cannot see it
  std::vector<Line> lines;
  std::vector<Band> ranges;
  std::string ranges_color = "c1";
  std::vector<Marks> marks;
  std::vector<Tick> x_ticks;        // by place; empty: made from the x of lines and ranges
  double least_y = 0, most_y = 0;   // where lines may not decide; equal: they do
  bool log_y = false, low = false;  // low: a chart of half the height
  bool x_is_place = false;          // x runs from 0 to 1: `x_ticks` name it
};

// Nothing without a single finite point.
std::string draw(const Plot& plot);

// A drawing between its axes' labels; `drawing` in a box of 1000 x 1000. `class_name` sets height.
std::string framed(const Axis& y, const std::vector<Tick>& x_ticks, const std::string& summary,
                   const std::string& drawing, const std::string& class_name);
// The whole figure: heading, legend (markup), frame (markup), label of the x axis.
std::string figure(const std::string& title, const std::string& unit, const std::string& legend,
                   const std::string& frame, const std::string& x_label);
// An entry of a legend; `mark` is a class: "line", "thin", "dashed", "dot", "box".
std::string legend_entry(const std::string& color, const std::string& mark,
                         const std::string& name);

}  // namespace sala
