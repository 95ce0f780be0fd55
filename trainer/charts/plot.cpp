// Lines, ranges and dots in a box of 1000 x 1000, y downwards.
#include "trainer/charts/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "trainer/charts/html.h"

namespace sala {
namespace {

bool finite(double x, double y) { return std::isfinite(x) && std::isfinite(y); }

struct Extent {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void add(double value) {
    if (!std::isfinite(value)) return;
    low = std::min(low, value), high = std::max(high, value);
  }
  bool empty() const { return low > high; }
};

struct Axes {
  Axis x, y;
  double at_x(double value) const { return kBox * x.place(value); }
  double at_y(double value) const { return kBox * (1 - y.place(value)); }
};

Extent extent_x(const Plot& plot) {
  Extent extent;
  for (const Line& line : plot.lines) {
    for (const Point& p : line.points) {
      if (finite(p.x, p.y)) extent.add(p.x);
    }
  }
  for (const Band& range : plot.ranges) extent.add(range.x);
  return extent;
}

// Of the lines; ranges beyond them are cut off by the caller's least_y and most_y.
Extent extent_y(const Plot& plot) {
  Extent extent;
  for (const Line& line : plot.lines) {
    if (line.own_scale) continue;
    for (const Point& p : line.points) {
      if (finite(p.x, p.y) && (!plot.log_y || p.y > 0)) extent.add(p.y);
    }
  }
  if (plot.least_y < plot.most_y) extent.add(plot.least_y), extent.add(plot.most_y);
  return extent;
}

std::string ranges_path(const Plot& plot, const Axes& axes) {
  std::string path;
  for (const Band& r : plot.ranges) {
    if (!finite(r.x, r.low) || !std::isfinite(r.high)) continue;
    path +=
        fmt::format("M{:.1f} {:.1f}V{:.1f}", axes.at_x(r.x), axes.at_y(r.low), axes.at_y(r.high));
  }
  if (path.empty()) return "";
  return fmt::format("<path class=\"faint {}\" d=\"{}\"/>\n", plot.ranges_color, path);
}

// Strokes of no length with round ends: round whatever the box is stretched to. Those without a
// note are one path.
std::string dots(const Line& line, const Axes& axes) {
  std::string noted, others;
  for (const Point& p : line.points) {
    if (!finite(p.x, p.y)) continue;
    const std::string dot = fmt::format("M{:.1f} {:.1f}h0", axes.at_x(p.x), axes.at_y(p.y));
    if (p.note.empty()) {
      others += dot;
      continue;
    }
    noted += fmt::format("<path class=\"dot {}\" d=\"{}\">{}</path>", line.color, dot,
                         element("title", "", escaped(p.note)));
  }
  if (!others.empty()) {
    noted += fmt::format("<path class=\"dot {}\" d=\"{}\"/>", line.color, others);
  }
  return noted + "\n";
}

std::string one_line(const Line& line, const Axes& shared) {
  Axes axes = shared;
  if (line.own_scale) {
    double most = 0;
    for (const Point& p : line.points) most = std::max(most, finite(p.x, p.y) ? p.y : 0.0);
    if (most <= 0) return "";
    axes.y = {0, most * 1.02, false, {}};
  }
  std::string path;
  for (const Point& p : line.points) {
    if (!finite(p.x, p.y)) continue;
    path +=
        fmt::format("{}{:.1f} {:.1f}", path.empty() ? 'M' : 'L', axes.at_x(p.x), axes.at_y(p.y));
  }
  if (path.empty()) return "";
  const bool alone = path.find('L') == std::string::npos;
  const char* name = line.kind == Line::Kind::kThin     ? "thin "
                     : line.kind == Line::Kind::kDashed ? "dashed "
                                                        : "";
  std::string out;
  if (line.kind != Line::Kind::kDots && !alone) {
    out = fmt::format("<path class=\"line {}{}\" d=\"{}\"/>\n", name, line.color, path);
  }
  const bool has_dots = line.kind == Line::Kind::kDots || line.kind == Line::Kind::kDotsAndLine;
  return has_dots || alone ? out + dots(line, axes) : out;
}

std::string legend_of(const Plot& plot) {
  std::string legend;
  for (const Line& line : plot.lines) {
    if (line.name.empty() || line.points.empty()) continue;
    const char* mark = line.kind == Line::Kind::kThin     ? "thin"
                       : line.kind == Line::Kind::kDashed ? "dashed"
                       : line.kind == Line::Kind::kLine   ? "line"
                                                          : "dot";
    legend += legend_entry(line.color, mark, line.name);
  }
  for (const Marks& marks : plot.marks) {
    if (!marks.at.empty()) legend += legend_entry(marks.color, "line", marks.name);
  }
  return legend;
}

}  // namespace

std::string legend_entry(const std::string& color, const std::string& mark,
                         const std::string& name) {
  return element("span", "", fmt::format("<i class=\"{} {}\"></i>", mark, color) + escaped(name));
}

std::string framed(const Axis& y, const std::vector<Tick>& x_ticks, const std::string& summary,
                   const std::string& drawing, const std::string& class_name) {
  std::string grid, y_labels, x_labels;
  size_t widest = 1;
  for (const Tick& tick : y.ticks) {
    grid += fmt::format("<path class=\"grid\" d=\"M0 {0:.1f}H{1:.0f}\"/>", kBox * (1 - tick.place),
                        kBox);
    y_labels += element("span", fmt::format("style=\"bottom:{:.2f}%\"", 100 * tick.place),
                        escaped(tick.label));
    widest = std::max(widest, tick.label.size());
  }
  for (const Tick& tick : x_ticks) {
    x_labels += element("span", fmt::format("style=\"left:{:.2f}%\"", 100 * tick.place),
                        escaped(tick.label));
  }
  return fmt::format(
      "<div class=\"frame {}\" style=\"--labels:{}ch\"><div class=\"ys\" aria-hidden=\"true\">{}"
      "</div>\n<svg role=\"img\" aria-label=\"{}\" viewBox=\"0 0 1000 1000\" "
      "preserveAspectRatio=\"none\">\n{}\n{}</svg>\n"
      "<div class=\"xs\" aria-hidden=\"true\">{}</div></div>\n",
      class_name, widest + 1, y_labels, escaped(summary), grid, drawing, x_labels);
}

std::string figure(const std::string& title, const std::string& unit, const std::string& legend,
                   const std::string& frame, const std::string& x_label) {
  std::string caption = element("strong", "", escaped(title));
  if (!unit.empty()) caption += " " + element("span", "class=\"unit\"", escaped(unit));
  std::string body = element("figcaption", "", caption) + "\n";
  if (!legend.empty()) body += element("div", "class=\"legend\"", legend) + "\n";
  body += frame;
  if (!x_label.empty()) body += element("div", "class=\"xlabel\"", escaped(x_label)) + "\n";
  return element("figure", "", body) + "\n";
}

std::string draw(const Plot& plot) {
  const Extent x = extent_x(plot), y = extent_y(plot);
  if (x.empty() || y.empty()) return "";
  Axes axes;
  axes.y = make_axis(y.low, y.high, plot.low ? 3 : 5, plot.log_y, !plot.log_y);
  axes.x = plot.x_is_place ? Axis{0, 1, false, {}} : make_axis(x.low, x.high, 5, false, false);
  std::string drawing = ranges_path(plot, axes);
  for (const Line& line : plot.lines) drawing += one_line(line, axes);
  for (const Marks& marks : plot.marks) {
    std::string path;
    for (const double at : marks.at) path += fmt::format("M{:.1f} 0V60", axes.at_x(at));
    if (path.empty()) continue;
    drawing += fmt::format("<path class=\"line {}\" d=\"{}\"/>", marks.color, path);
  }
  const auto& ticks = plot.x_ticks.empty() ? axes.x.ticks : plot.x_ticks;
  return figure(
      plot.title, plot.unit, legend_of(plot),
      framed(axes.y, ticks, plot.title + ". " + plot.summary, drawing, plot.low ? "low" : "high"),
      plot.x_label);
}

}  // namespace sala
