// Axes, numbers, curves and figures of the report.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "tests/trainer/well_formed.h"
#include "trainer/charts/bars.h"
#include "trainer/charts/heat.h"
#include "trainer/charts/html.h"
#include "trainer/charts/interval.h"
#include "trainer/charts/plot.h"
#include "trainer/charts/series.h"

namespace sala {
namespace {

using test::XmlCheck;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// By hand from the formula: p = 1/2, n = 100: 0.5 ± 0.0962; p = 0, n = 10: up to 3.8416 / 13.8416.
TEST(Interval, HoldsTheRateAndStaysInside) {
  const Interval half = wilson(50, 100);
  EXPECT_NEAR(*half.low, 0.4038, 1e-4);
  EXPECT_NEAR(*half.high, 0.5962, 1e-4);
  const Interval none = wilson(0, 10);
  EXPECT_NEAR(*none.low, 0, 1e-12);
  EXPECT_NEAR(*none.high, 3.8416 / 13.8416, 1e-6);
  for (const int count : {1, 3, 500}) {
    for (const double rate : {0.0, 0.1, 0.77, 1.0}) {
      const Interval interval = wilson(rate * count, count);
      EXPECT_LE(*interval.low, rate + 1e-12);
      EXPECT_GE(*interval.high, rate - 1e-12);
      EXPECT_GE(*interval.low, 0);
      EXPECT_LE(*interval.high, 1);
    }
  }
  EXPECT_FALSE(wilson(0, 0).low);
}

TEST(Charts, TicksAreFewInOrderAndDifferent) {
  const double ends[] = {-3e9, -1, -1e-7, 0, 1e-9, 0.31, 0.3100001, 1, 7.3, 2100, 8.4e6, 5e12};
  for (const double low : ends) {
    for (const double high : ends) {
      for (const bool log : {false, true}) {
        for (const bool round : {false, true}) {
          const Axis axis = make_axis(low, high, 5, log, round);
          SCOPED_TRACE(fmt::format("{} to {}, log {}, round {}", low, high, log, round));
          ASSERT_LT(axis.low, axis.high);
          EXPECT_GE(axis.ticks.size(), 2u);
          EXPECT_LE(axis.ticks.size(), 8u);
          std::set<std::string> labels;
          double before = -1e-9;
          for (const Tick& tick : axis.ticks) {
            EXPECT_GT(tick.place, before);
            EXPECT_LE(tick.place, 1);
            EXPECT_TRUE(labels.insert(tick.label).second) << tick.label;
            before = tick.place;
          }
          const double rounding = round ? 1e-8 * (axis.high - axis.low) : 1e300;
          EXPECT_LE(axis.low, std::min(low, high) + rounding);
          EXPECT_GE(axis.high, std::max(low, high) - rounding);
        }
      }
    }
  }
}

TEST(Charts, TicksStandAtRoundNumbers) {
  const Axis axis = make_axis(2.13, 3.91, 5, false, true);
  std::string labels;
  for (const Tick& tick : axis.ticks) labels += tick.label + " ";
  EXPECT_EQ(labels, "2.0 2.5 3.0 3.5 4.0 ");
  EXPECT_EQ(make_axis(0.02, 300, 4, true, true).ticks.front().label, "0.01");
  EXPECT_EQ(make_axis(kNan, kInfinity, 5, true, true).ticks.size(), 6u);
}

TEST(Charts, NumbersHaveSensibleDigits) {
  EXPECT_EQ(fixed(2.8696, 3), "2.870");
  EXPECT_EQ(fixed(-0.0001, 2), "0.00");
  EXPECT_EQ(fixed(kNan, 2), kNoValue);
  EXPECT_EQ(fixed({}, 2), kNoValue);
  EXPECT_EQ(significant(0.0031234, 3), "0.00312");
  EXPECT_EQ(significant(3.1e-7, 2), "3.1e-07");
  EXPECT_EQ(significant(123456, 3), "123,456");
  EXPECT_EQ(amount(134'515'008), "135M");
  EXPECT_EQ(amount(24'576), "24.6K");
  EXPECT_EQ(amount(999.96e3), "1M");
  EXPECT_EQ(amount(0.5), "0.5");
  EXPECT_EQ(amount(kInfinity), kNoValue);
  EXPECT_EQ(length_text(4096), "4K");
  EXPECT_EQ(length_text(1000), "1,000");
  EXPECT_EQ(length_text(1 << 20), "1M");
  EXPECT_EQ(percent(0.2791, 1), "27.9\u00a0%");
  EXPECT_EQ(duration(9.94), "9.9 s");
  EXPECT_EQ(duration(185), "3 min 05 s");
  EXPECT_EQ(duration(93'600), "1 d 2 h");
  EXPECT_EQ(storage(57.1e9), "57.1 GB");
  EXPECT_EQ(moment(1'700'000'000), "2023-11-14 22:13 UTC");
  EXPECT_EQ(with_error(2.87, 0.0388, 3), "2.870 \u00b1 0.039");
  EXPECT_EQ(grouped(-1234567), "-1,234,567");
}

TEST(Charts, EscapedTextIsXmlWhateverItsBytes) {
  EXPECT_EQ(escaped("a<b>&\"c\""), "a&lt;b&gt;&amp;&quot;c&quot;");
  EXPECT_EQ(escaped("\u00b1 \u4f60 \U0001F600"), "\u00b1 \u4f60 \U0001F600");
  const std::string replacement = "\xEF\xBF\xBD";
  EXPECT_EQ(escaped("\x01\xff"), replacement + replacement);
  EXPECT_EQ(escaped("\xc3("), replacement + "(");                               // cut short
  EXPECT_EQ(escaped("\xed\xa0\x80"), replacement + replacement + replacement);  // a surrogate
  EXPECT_EQ(escaped("\xc0\xaf"), replacement + replacement);                    // too long a form
}

TEST(Charts, ACurveKeepsItsSumsAndExtremes) {
  Series series;
  double sum = 0;
  for (int i = 0; i < 12'345; ++i) {
    const double y = std::sin(i) + (i == 777 ? 100 : 0);
    series.add(i, y);
    sum += y;
  }
  series.add(kNan, 1);
  series.add(1, kInfinity);
  EXPECT_LE(series.bins().size(), Series::kMostBins);
  EXPECT_GE(series.bins().size(), Series::kMostBins / 2);
  double kept = 0, high = 0, before = -1;
  int64_t count = 0;
  for (const Series::Bin& bin : series.bins()) {
    kept += bin.sum, count += bin.count, high = std::max(high, bin.high);
    EXPECT_GT(bin.x, before);
    before = bin.x;
  }
  EXPECT_EQ(count, 12'345);
  EXPECT_EQ(series.count(), 12'345);
  EXPECT_NEAR(kept, sum, 1e-6);
  EXPECT_GT(high, 99);
  EXPECT_LT(series.bound(0.99), 2) << "one spike stretches the range";
  EXPECT_NEAR(series.median(), 0, 0.1);
  EXPECT_EQ(Series().median(), 0);
}

TEST(Charts, FiguresAreWellFormedAndEmptyOnesAreNothing) {
  EXPECT_EQ(draw(Plot{}), "");
  EXPECT_EQ(draw(BarChart{}), "");
  EXPECT_EQ(draw(HeatMap{}), "");
  EXPECT_EQ(stacked_bar({{"a", 0, "c1"}, {"b", kNan, "c2"}}, ""), "");
  EXPECT_EQ(HtmlTable{}.html(), "");
  Plot plot;
  plot.lines.push_back(
      {"<a>", "c1", {{1, kNan, ""}, {kInfinity, 2, ""}}, Line::Kind::kLine, false});
  EXPECT_EQ(draw(plot), "");
  plot.lines[0].points.push_back({5, 5, "a & b"});
  plot.ranges = {{5, kNan, 1}, {5, 4, 1e30}};
  plot.marks = {{"gone", "warn", {5, 1e9}}, {"none", "c6", {}}};
  plot.title = "\"<&";
  for (const bool log : {false, true}) {
    plot.log_y = log;
    EXPECT_EQ(XmlCheck(draw(plot))(), "") << draw(plot);
  }
  BarChart bars;
  bars.bars = {{"0", kNan, {}, "c1", ""}, {"1", -2, 1e9, "c1", "<"}, {"2", {}, {}, "c1", ""}};
  EXPECT_EQ(XmlCheck(draw(bars))(), "") << draw(bars);
  const HeatMap map{"<t>", "&", {"1"}, {"r"}, {{{7.5, "<", "\""}}}};
  EXPECT_EQ(XmlCheck(draw(map))(), "") << draw(map);
  EXPECT_EQ(XmlCheck(stacked_bar({{"<", 1, "c1"}, {"&", 3, "c2"}}, "\""))(), "");
}

TEST(Charts, TheCheckOfThePagesFindsMistakes) {
  EXPECT_EQ(XmlCheck("<a b=\"1\"><c/>x &amp; y</a>")(), "");
  for (const char* wrong : {"", "<a>", "<a></b>", "<a b=1/>", "<a b=\"1\" b=\"2\"/>", "<a>&</a>",
                            "<a>\x01</a>", "<a/><b/>", "<a b=\"<\"/>", "text", "<a>&nbsp;</a>"}) {
    EXPECT_NE(XmlCheck(wrong)(), "") << wrong;
  }
}

}  // namespace
}  // namespace sala
