// Scores of the layers by each method with the choice marked, and how well each mixer was aligned.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "trainer/charts/bars.h"
#include "trainer/charts/html.h"
#include "trainer/charts/plot.h"
#include "trainer/report/sections.h"

namespace sala {

using nlohmann::json;

namespace {

std::vector<int64_t> numbers_in(const json& array) {
  std::vector<int64_t> numbers;
  for (const json& x : array) {
    if (x.is_number_integer()) numbers.push_back(x.get<int64_t>());
  }
  return numbers;
}

bool holds(const std::vector<int64_t>& layers, int64_t layer) {
  return std::find(layers.begin(), layers.end(), layer) != layers.end();
}

std::string legend(const std::vector<int64_t>& kept) {
  if (kept.empty()) return "";
  return legend_entry("kept", "box", "keeps softmax attention") +
         legend_entry("linear", "box", "becomes linear");
}

// What the score stage says of its own certainty.
std::string certainty(const json& scores) {
  const auto found = scores.find("within_noise");
  const bool said = found != scores.end() && found->is_boolean();
  const bool noise = said && found->get<bool>();
  const std::string note = text_at(scores, "note");
  if (!note.empty()) return paragraph((noise ? "The choice is within noise: " : "") + note);
  if (noise) {
    return paragraph(
        "The choice is within noise: layers that were not chosen may matter as much. More "
        "documents would tell them apart.");
  }
  return said ? paragraph("The choice stands clear of the noise.") : "";
}

std::string scores_chart(const json& scores, const std::string& stage,
                         const std::vector<int64_t>& chosen) {
  const std::vector<int64_t> own = numbers_in(array_at(scores, "kept"));
  const std::vector<int64_t>& kept = own.empty() ? chosen : own;
  BarChart chart;
  const std::string method = text_at(scores, "method");
  chart.title = method.empty() ? "Importance of each layer" : "Importance by " + method;
  chart.unit = "score, higher matters more; lines: one standard error";
  chart.x_label = "layer";
  if (const Maybe documents = number_at(scores, "documents")) {
    chart.unit += fmt::format("; {} documents", grouped(*documents));
  }
  chart.legend = legend(kept);
  std::string names;
  for (const json& l : array_at(scores, "layers")) {
    const auto layer = count_at(l, "layer");
    const Maybe score = number_at(l, "score"), se = number_at(l, "se");
    const bool keeps = holds(kept, layer);
    if (keeps) names += fmt::format("{}{}", names.empty() ? "" : ", ", layer);
    chart.bars.push_back(
        {std::to_string(layer), score, se, keeps ? "kept" : "linear",
         fmt::format("layer {}: {}{}", layer, with_error(score, se, 3), keeps ? ", kept" : "")});
  }
  chart.summary = names.empty() ? "Stage " + stage : "Kept layers: " + names;
  const std::string drawn = draw(chart);
  return drawn.empty() ? "" : element("div", "", drawn + certainty(scores)) + "\n";
}

std::string alignment_chart(const Record& record, const std::vector<int64_t>& kept) {
  const StageRecord* stage = nullptr;
  for (const StageRecord& s : record.stages) {
    if (!s.layer_losses.empty()) stage = &s;
  }
  if (!stage) return "";
  BarChart chart;
  chart.title = "What each aligned mixer leaves unexplained";
  chart.unit = "squared error over the teacher's variance, last step of " + stage->name;
  chart.x_label = "layer";
  chart.legend = legend(kept);
  for (size_t l = 0; l < stage->layer_losses.size(); ++l) {
    const double loss = stage->layer_losses[l];
    const bool keeps = holds(kept, static_cast<int64_t>(l));
    chart.bars.push_back({std::to_string(l),
                          loss,
                          {},
                          keeps ? "kept" : "linear",
                          fmt::format("layer {}: {}", l, significant(loss, 3))});
  }
  chart.summary = "One bar for each layer.";
  return draw(chart);
}

}  // namespace

std::vector<int64_t> kept_in(const Record& record) {
  return record.swaps.empty() ? std::vector<int64_t>{}
                              : numbers_in(array_at(record.swaps.back(), "kept"));
}

std::string layers_html(const Record& record) {
  const std::vector<int64_t> kept = kept_in(record);
  std::string charts;
  for (const json& scores : record.scores) {
    const std::string stage = text_at(scores, "stage");
    charts += scores_chart(scores, stage, kept);
    for (const json& other : array_at(scores, "methods")) {  // measured beside the one that chose
      if (text_at(other, "method") != text_at(scores, "method")) {
        charts += scores_chart(other, stage, kept);
      }
    }
  }
  charts += alignment_chart(record, kept);
  return charts.empty() ? ""
                        : section("layers", "Layers",
                                  element("div", "class=\"charts\"", "\n" + charts) + "\n");
}

}  // namespace sala
