// What each evaluation measured; multiple choice with chance; loss by position.
#include <fmt/format.h>

#include <cmath>
#include <set>

#include "trainer/charts/html.h"
#include "trainer/charts/plot.h"
#include "trainer/report/measures.h"
#include "trainer/report/sections.h"

namespace sala {

using nlohmann::json;

std::string results_html(const Record& record) {
  std::string warnings;
  for (const std::string& warning : record.warnings) {
    warnings += element("p", "class=\"warning\"", escaped(warning)) + "\n";
  }
  const MeasureTable measured = measure_table(record.evaluations);
  HtmlTable table;
  table.caption = "Held-out results after each stage";
  table.columns = {"measure"};
  table.columns.insert(table.columns.end(), measured.columns.begin(), measured.columns.end());
  std::string group;
  for (const Measure& measure : measured.measures) {
    if (measure.group != group) {
      table.rows.push_back({measure.group, {}, true});
      group = measure.group;
    }
    HtmlTable::Row row{measure.name, {}, false};
    for (const Measured& value : measure.values) {
      row.cells.push_back(shown(value, measure.is_rate));
    }
    table.rows.push_back(std::move(row));
  }
  std::string content = warnings + table.html();
  if (!table.rows.empty()) {
    content += paragraph(
        "Loss and KL are nats per token; KL is to the source model on the same tokens, top-1 the "
        "share of tokens whose likeliest id is the source model's. \u00b1 and brackets are 95 % "
        "intervals: 1.96 standard errors, for retrieval Wilson's interval.");
  }
  return section("results", "Before and after", content);
}

namespace {

std::string accuracy(const json* evaluation, const std::string& set, const std::string& key) {
  if (!evaluation) return kNoValue;
  const json& measured = object_at(object_at(*evaluation, "choices"), set);
  const Maybe value = number_at(measured, key), error = number_at(measured, key + "_se");
  if (!value) return kNoValue;
  return with_error(*value * 100, error ? Maybe(*error * 196) : Maybe(), 1);
}

}  // namespace

std::string choices_html(const Record& record) {
  const json* student = latest_student(record, "choices");
  const json* teacher = teacher_beside(record, student, "choices");
  std::set<std::string> sets;
  for (const json* e : {teacher, student}) {
    if (!e) continue;
    for (const auto& [name, _] : object_at(*e, "choices").items()) sets.insert(name);
  }
  HtmlTable table;
  table.caption = "Multiple choice, accuracy in percent";
  const std::string label = student ? text_at(*student, "label") : "hybrid";
  table.columns = {
      "set", "questions", "chance", "teacher", label, "teacher, by length", label + ", by length"};
  for (const std::string& set : sets) {
    Maybe count, chance;
    for (const json* e : {teacher, student}) {
      if (!e) continue;
      const json& measured = object_at(object_at(*e, "choices"), set);
      if (const Maybe x = number_at(measured, "count")) count = x;
      if (const Maybe x = number_at(measured, "chance")) chance = *x * 100;
    }
    table.rows.push_back({set,
                          {count ? grouped(*count) : kNoValue, fixed(chance, 1),
                           accuracy(teacher, set, "acc"), accuracy(student, set, "acc"),
                           accuracy(teacher, set, "acc_norm"), accuracy(student, set, "acc_norm")},
                          false});
  }
  if (table.rows.empty()) return "";
  return section("choices", "Multiple choice",
                 table.html() + paragraph("The answer with the largest log-likelihood counts; by "
                                          "length: per character of the answer. \u00b1 is a 95 % "
                                          "interval."));
}

namespace {

// Lines by the logarithm of the position: every bucket is as wide as the next.
void add_positions(Plot& plot, const json* evaluation, const std::string& source,
                   const std::string& name, const std::string& color, const std::string& key) {
  if (!evaluation) return;
  const json& buckets =
      array_at(object_at(object_at(*evaluation, "sources"), source), "by_position");
  Line line{name, color, {}, Line::Kind::kDotsAndLine, false};
  for (size_t b = 0; b < buckets.size(); ++b) {
    const Maybe value = number_at(buckets[b], key);
    if (!value) continue;
    line.points.push_back({(static_cast<double>(b) + 0.5) / static_cast<double>(buckets.size()),
                           *value,
                           fmt::format("{}: {} nats at positions {} to {}", name, fixed(value, 3),
                                       length_text(number_at(buckets[b], "from")),
                                       length_text(number_at(buckets[b], "to")))});
  }
  plot.lines.push_back(std::move(line));
}

// Where buckets end. At most eight: every other one goes until they fit, the last stays.
std::vector<Tick> position_ticks(const json& buckets) {
  constexpr size_t kMostTicks = 8;
  size_t every = 1;
  while (buckets.size() / every > kMostTicks) every *= 2;
  std::vector<Tick> ticks;
  for (size_t b = 0; b < buckets.size(); ++b) {
    if ((buckets.size() - 1 - b) % every != 0) continue;
    const Maybe to = number_at(buckets[b], "to");
    if (!to) continue;
    const double place = (static_cast<double>(b) + 1) / static_cast<double>(buckets.size());
    ticks.push_back({place, length_text(to)});
  }
  return ticks;
}

}  // namespace

std::string positions_html(const Record& record) {
  const json* student = latest_student(record, "sources");
  const json* teacher = teacher_beside(record, student, "sources");
  const json* any = student ? student : teacher;
  if (!any) return "";
  const std::string label = student ? text_at(*student, "label") : "";
  std::string charts;
  for (const auto& [source, measured] : object_at(*any, "sources").items()) {
    Plot plot;
    plot.unit = "nats per token";
    plot.x_label = "position in the document, tokens";
    plot.x_is_place = true;
    plot.x_ticks = position_ticks(array_at(measured, "by_position"));
    Plot kl = plot;
    plot.title = "Loss by position, " + source;
    plot.summary = "Each point is the mean loss of the tokens up to that position.";
    add_positions(plot, teacher, source, "teacher", "teacher", "loss");
    add_positions(plot, student, source, label, "c1", "loss");
    kl.title = "KL by position, " + source;
    kl.summary = "Each point is the mean KL of the tokens up to that position.";
    add_positions(kl, student, source, label, "c1", "kl");
    charts += draw(plot) + draw(kl);
  }
  if (charts.empty()) return "";
  return section("positions", "Loss by position",
                 element("div", "class=\"charts\"", "\n" + charts) + "\n");
}

}  // namespace sala
