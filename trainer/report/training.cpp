// Curves of each training stage, and held-out loss over the whole run.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "trainer/charts/html.h"
#include "trainer/charts/plot.h"
#include "trainer/report/measures.h"
#include "trainer/report/sections.h"

namespace sala {

using nlohmann::json;

namespace {

constexpr const char* kTokensLabel = "tokens of the whole run";

std::string color_of(size_t i) { return fmt::format("c{}", i % 6 + 1); }

std::vector<Band> ranges_of(const Series& series) {
  std::vector<Band> ranges;
  for (const Series::Bin& bin : series.bins()) ranges.push_back({bin.x, bin.low, bin.high});
  return ranges;
}

size_t half_window(size_t num_bins) { return std::max<size_t>(2, num_bins / 40); }

// A running mean over bins that looks to both sides, so that it lags behind nothing: its window is
// a twentieth of the curve, five values at least, and shrinks towards the ends.
std::vector<Point> smoothed(const Series& series) {
  const auto& bins = series.bins();
  const size_t half = half_window(bins.size());
  std::vector<double> sums{0}, counts{0};
  for (const Series::Bin& bin : bins) {
    sums.push_back(sums.back() + bin.sum);
    counts.push_back(counts.back() + static_cast<double>(bin.count));
  }
  std::vector<Point> points;
  for (size_t i = 0; i < bins.size(); ++i) {
    const size_t reach = std::min({half, i, bins.size() - 1 - i});
    const size_t from = i - reach, to = i + reach + 1;
    points.push_back({bins[i].x, (sums[to] - sums[from]) / (counts[to] - counts[from]), ""});
  }
  return points;
}

// The same by the median, which single spikes do not move.
std::vector<Point> medians(const Series& series) {
  const auto& bins = series.bins();
  const size_t half = half_window(bins.size());
  std::vector<Point> points;
  for (size_t i = 0; i < bins.size(); ++i) {
    const size_t reach = std::min({half, i, bins.size() - 1 - i});
    std::vector<double> near;
    for (size_t j = i - reach; j <= i + reach; ++j) near.push_back(bins[j].mean());
    std::nth_element(near.begin(), near.begin() + static_cast<std::ptrdiff_t>(reach), near.end());
    points.push_back({bins[i].x, near[reach], ""});
  }
  return points;
}

std::vector<Point> means(const Series& series) {
  std::vector<Point> points;
  for (const Series::Bin& bin : series.bins()) points.push_back({bin.x, bin.mean(), ""});
  return points;
}

// The range of the values without the outermost hundredth, which single spikes would stretch.
void fit_y(Plot& plot, const Series& series) {
  plot.least_y = series.bound(0.01);
  plot.most_y = series.bound(0.99);
  constexpr double kWide = 30;  // times: a logarithmic axis shows both ends
  plot.log_y = plot.least_y > 0 && plot.most_y > kWide * plot.least_y;
}

struct Meaning {
  std::string title, unit;
  bool held_out_loss = false, held_out_kl = false;  // what of an evaluation has this unit
};

Meaning meaning_of(const Record& record, const StageRecord& stage) {
  std::string type = stage_type(record, stage.name);
  if (type.empty()) type = !stage.layer_losses.empty() ? "align" : stage.kl.empty() ? "train" : "";
  if (type == "align") return {"error of the mixers", "over the teacher's variance", false, false};
  if (type == "train" || type == "sft") return {"loss", "nats per token", true, false};
  return {"loss", "KL to the teacher, nats per token", false, true};
}

constexpr size_t kMostNotes = 50;  // dots; more could not be pointed at

std::vector<Point> measured_points(const std::string& name, const Series& series, double from,
                                   double to) {
  std::vector<Point> points;
  const bool notes = series.bins().size() <= kMostNotes;
  for (const Series::Bin& bin : series.bins()) {
    if (bin.x < from || bin.x > to) continue;
    points.push_back({bin.x, bin.mean(),
                      notes ? fmt::format("{}: {} nats after {} tokens", name, fixed(bin.mean(), 3),
                                          amount(bin.x))
                            : ""});
  }
  return points;
}

// Held-out values that were measured from the stage's begin to its end.
void add_held_out(Plot& plot, const Record& record, const StageRecord& stage, bool kl) {
  size_t i = 1;
  for (const auto& [name, held_out] : record.held_out) {
    const std::string color = color_of(i++);
    Line dots{
        fmt::format("held-out {}{}", name, kl ? ", KL" : ""), color, {}, Line::Kind::kDots, false};
    dots.points = measured_points(name, kl ? held_out.kl : held_out.loss, stage.begin_tokens,
                                  stage.end_tokens);
    if (!dots.points.empty()) plot.lines.push_back(std::move(dots));
  }
}

std::string loss_chart(const Record& record, const StageRecord& stage) {
  const Meaning meaning = meaning_of(record, stage);
  Plot plot;
  plot.title = stage.name + ": " + meaning.title;
  plot.unit = meaning.unit;
  plot.x_label = kTokensLabel;
  plot.ranges = ranges_of(stage.loss);
  fit_y(plot, stage.loss);
  if (!stage.lr.empty()) {
    double peak = 0;
    for (const Series::Bin& bin : stage.lr.bins()) peak = std::max(peak, bin.high);
    plot.lines.push_back({fmt::format("learning rate, peak {:.2g}", peak), "teacher",
                          means(stage.lr), Line::Kind::kThin, true});
  }
  plot.lines.push_back({"smoothed", "c1", smoothed(stage.loss), Line::Kind::kLine, false});
  if (meaning.held_out_loss || meaning.held_out_kl) {
    add_held_out(plot, record, stage, meaning.held_out_kl);
  }
  plot.marks = {{"step skipped: not finite", "warn", stage.skipped_at},
                {"spike of loss or gradient", "c6", stage.spikes_at}};
  const auto& bins = stage.loss.bins();
  if (!bins.empty()) {
    plot.summary = fmt::format("From {} to {} in {} steps.", significant(bins.front().mean(), 4),
                               significant(bins.back().mean(), 4),
                               grouped(static_cast<double>(stage.num_steps)));
  }
  return draw(plot);
}

std::string norm_chart(const StageRecord& stage) {
  Plot plot;
  const bool parts = !stage.layer_losses.empty();
  plot.title = stage.name + ": gradient norm";
  plot.unit = parts ? "largest of the mixers, before clipping" : "before clipping";
  plot.x_label = kTokensLabel;
  plot.low = true;
  plot.ranges = ranges_of(stage.grad_norm);
  fit_y(plot, stage.grad_norm);
  plot.ranges_color = "c4";
  plot.lines.push_back({"", "c4", medians(stage.grad_norm), Line::Kind::kLine, false});
  plot.summary = fmt::format("Median {}.", significant(stage.grad_norm.median(), 3));
  return draw(plot);
}

// The student's line of each source, and the teacher's level beside it.
std::string held_out_chart(const Record& record, bool kl) {
  Plot plot;
  plot.title = kl ? "Held-out KL over the run" : "Held-out loss over the run";
  plot.unit = kl ? "to the teacher, nats per token" : "nats per token; dashed: the teacher";
  plot.x_label = kTokensLabel;
  size_t i = 1;
  for (const auto& [name, held_out] : record.held_out) {
    const Series& series = kl ? held_out.kl : held_out.loss;
    const std::string color = color_of(i++);
    if (series.empty()) continue;
    const auto& bins = series.bins();
    Line line{name, color, measured_points(name, series, bins.front().x, bins.back().x),
              bins.size() <= kMostNotes ? Line::Kind::kDotsAndLine : Line::Kind::kLine, false};
    if (line.points.empty()) continue;  // metrics that somebody edited
    plot.summary += fmt::format("{}: from {} to {}. ", name, fixed(line.points.front().y, 3),
                                fixed(line.points.back().y, 3));
    const double from = line.points.front().x, to = line.points.back().x;
    plot.lines.push_back(std::move(line));
    const json* student = latest_student(record, "sources");
    const json* teacher = teacher_beside(record, student, "sources");
    if (kl || !teacher) continue;
    if (const Maybe level = number_at(object_at(object_at(*teacher, "sources"), name), "loss")) {
      plot.lines.push_back(
          {"", color, {{from, *level, ""}, {to, *level, ""}}, Line::Kind::kDashed, false});
    }
  }
  return draw(plot);
}

// What was said of the spikes that the charts mark.
std::string spikes_said(const Record& record) {
  std::string lists;
  for (const StageRecord& stage : record.stages) {
    if (stage.spikes.empty()) continue;
    std::string said;
    for (const std::string& text : stage.spikes) said += paragraph(text);
    const auto more = stage.num_spikes - static_cast<int64_t>(stage.spikes.size());
    if (more > 0) said += paragraph(fmt::format("and {} more", grouped(static_cast<double>(more))));
    lists += folded(
        fmt::format("{}: {} spike{}", stage.name, grouped(static_cast<double>(stage.num_spikes)),
                    stage.num_spikes == 1 ? "" : "s"),
        said);
  }
  return lists;
}

}  // namespace

std::string training_html(const Record& record) {
  std::string charts;
  for (const StageRecord& stage : record.stages) {
    if (stage.num_steps == 0) continue;
    charts += loss_chart(record, stage) + norm_chart(stage);
  }
  charts += held_out_chart(record, false) + held_out_chart(record, true);
  if (charts.empty()) return "";
  return section("training", "Training",
                 element("div", "class=\"charts\"", "\n" + charts) + "\n" +
                     paragraph("Faint points are single steps, or the range of neighbouring ones "
                               "where there are many; values beyond the axis are drawn at its "
                               "edge. The line is a running mean, of gradient norms a running "
                               "median. Dots are held-out evaluations.") +
                     spikes_said(record));
}

}  // namespace sala
