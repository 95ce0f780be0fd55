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

std::string number(const nlohmann::json& object, const std::string& key, int decimals) {
  if (!object.contains(key)) return "-";
  const nlohmann::json& value = object.at(key);  // null: JSON has no NaN
  return value.is_number() ? fmt::format("{:.{}f}", value.get<double>(), decimals) : "nan";
}

std::set<std::string> names_in(const nlohmann::json& evaluations, const std::string& key) {
  std::set<std::string> names;
  for (const auto& e : evaluations) {
    const nlohmann::json measured = member(e, key);
    for (const auto& [name, _] : measured.items()) names.insert(name);
  }
  return names;
}

// Names that are numbers, in their order.
std::set<int64_t> lengths_in(const nlohmann::json& evaluations, const std::string& key) {
  std::set<int64_t> lengths;
  for (const std::string& name : names_in(evaluations, key)) lengths.insert(std::stoll(name));
  return lengths;
}

bool has_top1(const nlohmann::json& evaluations, const std::string& source) {
  return std::any_of(evaluations.begin(), evaluations.end(), [&](const nlohmann::json& e) {
    return member(member(e, "sources"), source).contains("top1");
  });
}

std::string losses_table(const nlohmann::json& evaluations) {
  const std::set<std::string> sources = names_in(evaluations, "sources");
  const std::set<int64_t> lengths = lengths_in(evaluations, "needle_rate");
  Cells header{"after"};
  for (const std::string& name : sources) {
    header.insert(header.end(), {name + " loss", "KL"});
    if (has_top1(evaluations, name)) header.push_back("top-1");
  }
  for (int64_t length : lengths) header.push_back(fmt::format("needle@{}", length));
  std::vector<Cells> rows{header};
  for (const auto& e : evaluations) {
    Cells row{e.at("label").get<std::string>()};
    for (const std::string& name : sources) {
      const nlohmann::json s = member(member(e, "sources"), name);
      row.insert(row.end(), {number(s, "loss", 4), number(s, "kl", 4)});
      if (has_top1(evaluations, name)) row.push_back(number(s, "top1", 3));
    }
    for (int64_t length : lengths) {
      row.push_back(number(member(e, "needle_rate"), std::to_string(length), 2));
    }
    rows.push_back(row);
  }
  return align_columns(rows);
}

// Mean score of the tasks by length, accuracy of multiple choice; empty where nothing was asked.
std::string answers_table(const nlohmann::json& evaluations) {
  const std::set<std::string> choices = names_in(evaluations, "choices");
  const std::set<int64_t> lengths = lengths_in(evaluations, "task_mean");
  if (choices.empty() && lengths.empty()) return "";
  Cells header{"after"};
  for (int64_t length : lengths) header.push_back(fmt::format("tasks@{}", length));
  header.insert(header.end(), choices.begin(), choices.end());
  std::vector<Cells> rows{header};
  for (const auto& e : evaluations) {
    Cells row{e.at("label").get<std::string>()};
    for (int64_t length : lengths) {
      row.push_back(number(member(e, "task_mean"), std::to_string(length), 3));
    }
    for (const std::string& set : choices) {
      row.push_back(number(member(member(e, "choices"), set), "acc", 3));
    }
    rows.push_back(row);
  }
  return "\n" + align_columns(rows);
}

}  // namespace

std::string evaluation_table(const nlohmann::json& evaluations) {
  if (evaluations.empty()) return "(no evaluation)\n";
  return losses_table(evaluations) + answers_table(evaluations);
}

std::string report_text(const nlohmann::json& evaluations,
                        const std::vector<std::string>& verdicts) {
  std::string text = evaluation_table(evaluations);
  for (const std::string& verdict : verdicts) text += "warning: " + verdict + "\n";
  return text;
}

}  // namespace sala
