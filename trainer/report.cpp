#include "trainer/report.h"

#include <algorithm>
#include <fmt/format.h>
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

}  // namespace

std::string evaluation_table(const nlohmann::json& evaluations) {
  if (evaluations.empty()) return "(no evaluation)\n";
  std::set<std::string> sources;
  std::set<int64_t> lengths;
  for (const auto& e : evaluations) {
    for (const auto& [name, _] : e.value("sources", nlohmann::json::object()).items()) {
      sources.insert(name);
    }
    for (const auto& [length, _] : e.value("needle_rate", nlohmann::json::object()).items()) {
      lengths.insert(std::stoll(length));
    }
  }
  Cells header{"after"};
  for (const std::string& name : sources) header.insert(header.end(), {name + " loss", "KL"});
  for (int64_t length : lengths) header.push_back(fmt::format("needle@{}", length));
  std::vector<Cells> rows{header};
  auto number = [](const nlohmann::json& object, const char* key) {
    return object.contains(key) ? fmt::format("{:.4f}", object.at(key).get<double>()) : "-";
  };
  for (const auto& e : evaluations) {
    Cells row{e.at("label").get<std::string>()};
    const auto measured = e.value("sources", nlohmann::json::object());
    for (const std::string& name : sources) {
      const auto s = measured.value(name, nlohmann::json::object());
      row.insert(row.end(), {number(s, "loss"), number(s, "kl")});
    }
    const auto rates = e.value("needle_rate", nlohmann::json::object());
    for (int64_t length : lengths) {
      const std::string key = std::to_string(length);
      row.push_back(rates.contains(key) ? fmt::format("{:.2f}", rates.at(key).get<double>()) : "-");
    }
    rows.push_back(row);
  }
  return align_columns(rows);
}

}  // namespace sala
