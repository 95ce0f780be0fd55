// Rectangles in a box of 1000 x 1000, y downwards.
#include "trainer/charts/bars.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "trainer/charts/html.h"
#include "trainer/charts/plot.h"

namespace sala {
namespace {

constexpr size_t kMostLabels = 12;

double error_of(const Bar& bar) {
  return bar.error && std::isfinite(*bar.error) ? std::abs(*bar.error) : 0;
}

}  // namespace

std::string draw(const BarChart& chart) {
  double low = 0, high = 0;
  bool any = false;
  for (const Bar& bar : chart.bars) {
    if (!bar.value || !std::isfinite(*bar.value)) continue;
    any = true;
    low = std::min(low, std::min(*bar.value, *bar.value - error_of(bar)));
    high = std::max(high, *bar.value + error_of(bar));
  }
  if (!any) return "";
  low = low < -1e-12 ? low : 0;
  // Errors may reach below 0 where values do not: they are cut there.
  const bool negative = std::any_of(chart.bars.begin(), chart.bars.end(), [](const Bar& bar) {
    return bar.value && std::isfinite(*bar.value) && *bar.value < 0;
  });
  const Axis y = make_axis(negative ? low : 0, high, 5, false, true);
  const double count = static_cast<double>(chart.bars.size());
  const double width = kBox / count;
  const double zero = kBox * (1 - y.place(0));
  std::string drawing;
  std::vector<Tick> ticks;
  const size_t every = (chart.bars.size() + kMostLabels - 1) / kMostLabels;
  for (size_t i = 0; i < chart.bars.size(); ++i) {
    const Bar& bar = chart.bars[i];
    const double center = (static_cast<double>(i) + 0.5) * width;
    if (i % every == 0) ticks.push_back({center / kBox, bar.label});
    if (!bar.value || !std::isfinite(*bar.value)) continue;
    const double top = kBox * (1 - y.place(*bar.value));
    std::string shapes = element("title", "", escaped(bar.note));
    shapes += fmt::format(
        "<rect class=\"{}\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\"/>",
        bar.color, center - 0.38 * width, std::min(top, zero), 0.76 * width,
        std::max(2.0, std::abs(zero - top)));
    if (error_of(bar) > 0) {
      shapes += fmt::format("<path class=\"error\" d=\"M{0:.1f} {1:.1f}V{2:.1f}\"/>", center,
                            kBox * (1 - y.place(*bar.value - error_of(bar))),
                            kBox * (1 - y.place(*bar.value + error_of(bar))));
    }
    drawing += element("g", "", shapes) + "\n";
  }
  return figure(chart.title, chart.unit, chart.legend,
                framed(y, ticks, chart.title + ". " + chart.summary, drawing, "high"),
                chart.x_label);
}

std::string stacked_bar(const std::vector<Part>& parts, const std::string& summary) {
  double all = 0;
  for (const Part& part : parts) all += std::isfinite(part.value) ? std::max(0.0, part.value) : 0;
  if (all <= 0) return "";
  std::string shapes;
  double at = 0;
  for (const Part& part : parts) {
    if (!std::isfinite(part.value) || part.value <= 0) continue;
    const double width = kBox * part.value / all;
    const std::string note = fmt::format("{}: {}", part.name, percent(part.value / all, 1));
    shapes +=
        element("rect",
                fmt::format("class=\"{}\" x=\"{:.1f}\" y=\"0\" width=\"{:.1f}\" height=\"10\"",
                            part.color, at, width),
                element("title", "", escaped(note)));
    at += width;
  }
  return fmt::format(
      "<svg class=\"stack\" role=\"img\" aria-label=\"{}\" viewBox=\"0 0 1000 10\" "
      "preserveAspectRatio=\"none\">{}</svg>\n",
      escaped(summary), shapes);
}

}  // namespace sala
