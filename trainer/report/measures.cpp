// Rows from sources, needles, tasks and choices; columns of one teacher become one.
#include "trainer/report/measures.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <set>

namespace sala {
namespace {

using nlohmann::json;

constexpr double kZ = 1.96;  // standard errors of a 95 % interval

Measured from_error(const json& object, const std::string& key) {
  Measured m{number_at(object, key), {}, {}, {}};
  if (const Maybe se = number_at(object, key + "_se"); m.value && se && *se > 0) {
    m.low = *m.value - kZ * *se;
    m.high = *m.value + kZ * *se;
  }
  return m;
}

int64_t length_of(const std::string& key) { return std::strtoll(key.c_str(), nullptr, 10); }

// Hits and trials by length, over all depths.
std::map<int64_t, std::pair<double, double>> needle_counts(const json& evaluation) {
  std::map<int64_t, std::pair<double, double>> counts;
  for (const json& cell : array_at(evaluation, "needles")) {
    auto& [hits, count] = counts[count_at(cell, "length")];
    hits += number_at(cell, "hits").value_or(0);
    count += number_at(cell, "count").value_or(0);
  }
  return counts;
}

Measured needles_at(const json& evaluation, int64_t length) {
  const auto counts = needle_counts(evaluation);
  const auto found = counts.find(length);
  if (found == counts.end()) {
    return {number_at(object_at(evaluation, "needle_rate"), std::to_string(length)), {}, {}, {}};
  }
  const auto [hits, count] = found->second;
  if (count <= 0) return {};
  const Interval interval = wilson(hits, count);
  return {hits / count, interval.low, interval.high, count};
}

// Names and lengths that any evaluation has.
struct Names {
  std::set<std::string> sources, choices;
  std::set<int64_t> needles, tasks;
};

Names names_in(const std::vector<json>& evaluations) {
  Names names;
  for (const json& e : evaluations) {
    for (const auto& [name, _] : object_at(e, "sources").items()) names.sources.insert(name);
    for (const auto& [name, _] : object_at(e, "choices").items()) names.choices.insert(name);
    for (const auto& [key, _] : object_at(e, "needle_rate").items()) {
      names.needles.insert(length_of(key));
    }
    for (const auto& [length, _] : needle_counts(e)) names.needles.insert(length);
    for (const auto& [key, _] : object_at(e, "task_mean").items()) {
      names.tasks.insert(length_of(key));
    }
  }
  return names;
}

template <class Get>
void add_measure(MeasureTable& table, const std::vector<json>& evaluations, Measure measure,
                 const Get& get) {
  bool any = false;
  for (const json& e : evaluations) {
    measure.values.push_back(get(e));
    any = any || measure.values.back().value;
  }
  if (any) table.measures.push_back(std::move(measure));
}

// Column `from` into `into`, where no row has two different values.
bool merge_columns(MeasureTable& table, size_t into, size_t from) {
  for (const Measure& m : table.measures) {
    const Maybe &a = m.values[into].value, &b = m.values[from].value;
    if (a && b && std::abs(*a - *b) > 1e-9 * std::max(1.0, std::abs(*a))) return false;
  }
  const auto at = [](size_t i) { return static_cast<std::ptrdiff_t>(i); };
  for (Measure& m : table.measures) {
    if (!m.values[into].value) m.values[into] = m.values[from];
    m.values.erase(m.values.begin() + at(from));
  }
  table.columns.erase(table.columns.begin() + at(from));
  return true;
}

}  // namespace

bool is_teacher(const json& evaluation) { return text_at(evaluation, "model") == "teacher"; }

MeasureTable measure_table(const std::vector<json>& unordered) {
  std::vector<json> evaluations = unordered;
  std::stable_partition(evaluations.begin(), evaluations.end(), is_teacher);
  const Names names = names_in(evaluations);
  std::set<double> rows;
  for (const json& e : evaluations) {
    if (const Maybe length = number_at(object_at(e, "options"), "row_length")) rows.insert(*length);
  }
  MeasureTable table;
  for (const json& e : evaluations) {
    std::string label = text_at(e, "label");
    const Maybe length = number_at(object_at(e, "options"), "row_length");
    if (rows.size() > 1 && length) {
      label += ", rows of " + length_text(length);
    }
    table.columns.push_back(label);
  }
  for (const std::string& name : names.sources) {
    for (const auto& [key, shown] : {std::pair{"loss", "loss"}, {"kl", "KL"}, {"top1", "top-1"}}) {
      add_measure(table, evaluations, {name, shown, std::string(key) == "top1", {}},
                  [&, key = key](const json& e) {
                    return from_error(object_at(object_at(e, "sources"), name), key);
                  });
    }
  }
  for (const int64_t length : names.needles) {
    add_measure(table, evaluations,
                {"needles found", length_text(static_cast<double>(length)) + " tokens", true, {}},
                [&](const json& e) { return needles_at(e, length); });
  }
  for (const int64_t length : names.tasks) {
    add_measure(
        table, evaluations,
        {"tasks, mean", length_text(static_cast<double>(length)) + " tokens", true, {}},
        [&](const json& e) {
          return Measured{number_at(object_at(e, "task_mean"), std::to_string(length)), {}, {}, {}};
        });
  }
  for (const std::string& name : names.choices) {
    add_measure(
        table, evaluations, {"multiple choice, accuracy", name, true, {}},
        [&](const json& e) { return from_error(object_at(object_at(e, "choices"), name), "acc"); });
  }
  const auto num_teachers =
      static_cast<size_t>(std::count_if(evaluations.begin(), evaluations.end(), is_teacher));
  for (size_t from = num_teachers; from-- > 1;) merge_columns(table, 0, from);
  return table;
}

std::string shown(const Measured& m, bool is_rate) {
  if (!m.value) return kNoValue;
  const bool has_interval = m.low && m.high;
  if (!is_rate) {
    return with_error(m.value, has_interval ? Maybe((*m.high - *m.low) / 2) : Maybe(), 3);
  }
  const int decimals = has_interval && *m.high - *m.low < 0.04 ? 1 : 0;
  std::string text = percent(m.value, decimals);
  if (has_interval) {
    text += fmt::format(" ({}{}{})", fixed(*m.low * 100, decimals), kNoValue,
                        fixed(*m.high * 100, decimals));
  }
  return text;
}

const json* latest_student(const Record& record, const std::string& key) {
  for (size_t i = record.evaluations.size(); i-- > 0;) {
    const json& e = record.evaluations[i];
    if (!is_teacher(e) && e.contains(key) && !e.at(key).empty()) return &e;
  }
  return nullptr;
}

const json* teacher_beside(const Record& record, const json* student, const std::string& key) {
  const json* found = nullptr;
  for (const json& e : record.evaluations) {
    if (!is_teacher(e) || !e.contains(key) || e.at(key).empty()) continue;
    const bool equal = student && object_at(*student, "options") == object_at(e, "options");
    if (!found || equal) found = &e;
    if (equal) break;
  }
  return found;
}

}  // namespace sala
