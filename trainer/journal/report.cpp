// Evaluations as an aligned text table.
#include "trainer/journal/report.h"

#include <fmt/format.h>
#include <algorithm>
#include <set>
#include <vector>

namespace sala {

namespace {

using Cells = std::vector<std::string>;

std::string align_columns(const std::vector<Cells>& rows) {
  std::vector<size_t> width(rows.front().size(), 0);
  for (const Cells& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], row[i].size());
  }
  std::string text;
  for (const Cells& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      text += i == 0 ? fmt::format("{:<{}}", row[i], width[i])
                     : fmt::format("  {:>{}}", row[i], width[i]);
    }
    text += '\n';
  }
  return text;
}

nlohmann::json member(const nlohmann::json& object, const std::string& key) {
  return object.contains(key) ? object.at(key) : nlohmann::json::object();
}

}  // namespace

std::string evaluation_table(const nlohmann::json& evaluations) {
  if (evaluations.empty()) return "(no evaluation)\n";
  std::set<std::string> sources;
  std::set<int64_t> lengths;
  for (const auto& e : evaluations) {
    const nlohmann::json measured = member(e, "sources"), rates = member(e, "needle_rate");
    for (const auto& [name, _] : measured.items()) sources.insert(name);
    for (const auto& [length, _] : rates.items()) lengths.insert(std::stoll(length));
  }
  Cells header{"after"};
  for (const std::string& name : sources) header.insert(header.end(), {name + " loss", "KL"});
  for (int64_t length : lengths) header.push_back(fmt::format("needle@{}", length));
  std::vector<Cells> rows{header};
  auto number = [](const nlohmann::json& object, const char* key) {
    if (!object.contains(key)) return std::string("-");
    const nlohmann::json& value = object.at(key);  // null: JSON has no NaN
    return value.is_number() ? fmt::format("{:.4f}", value.get<double>()) : std::string("nan");
  };
  for (const auto& e : evaluations) {
    Cells row{e.at("label").get<std::string>()};
    const nlohmann::json measured = member(e, "sources"), rates = member(e, "needle_rate");
    for (const std::string& name : sources) {
      const nlohmann::json s = member(measured, name);
      row.insert(row.end(), {number(s, "loss"), number(s, "kl")});
    }
    for (int64_t length : lengths) {
      const std::string key = std::to_string(length);
      row.push_back(rates.contains(key) ? fmt::format("{:.2f}", rates.at(key).get<double>()) : "-");
    }
    rows.push_back(row);
  }
  return align_columns(rows);
}

std::string report_text(const nlohmann::json& evaluations,
                        const std::vector<std::string>& verdicts) {
  std::string text = evaluation_table(evaluations);
  for (const std::string& verdict : verdicts) text += "warning: " + verdict + "\n";
  return text;
}

}  // namespace sala
