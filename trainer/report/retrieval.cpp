// Needles by length and depth, tasks by length: teacher and hybrid side by side.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "trainer/charts/heat.h"
#include "trainer/charts/html.h"
#include "trainer/report/measures.h"
#include "trainer/report/sections.h"

namespace sala {

using nlohmann::json;

namespace {

std::string rate(Maybe share) { return share ? fixed(*share * 100, 0) : kNoValue; }

// All evaluations of the teacher count: it may have been asked for other lengths at another time.
std::vector<const json*> teachers(const Record& record, const std::string& key) {
  std::vector<const json*> found;
  for (const json& e : record.evaluations) {
    if (is_teacher(e) && e.contains(key)) found.push_back(&e);
  }
  return found;
}

std::string needle_map(const std::vector<const json*>& evaluations, const std::string& title) {
  std::set<double> lengths, depths;
  std::map<std::pair<double, double>, std::pair<double, double>> cells;  // hits, count
  for (const json* e : evaluations) {
    for (const json& cell : array_at(*e, "needles")) {
      const Maybe length = number_at(cell, "length"), depth = number_at(cell, "depth");
      if (!length || !depth) continue;
      lengths.insert(*length), depths.insert(*depth);
      cells[{*depth, *length}] = {number_at(cell, "hits").value_or(0),
                                  number_at(cell, "count").value_or(0)};
    }
  }
  HeatMap map;
  map.title = title;
  map.corner = "depth";
  for (const double length : lengths) {
    map.columns.push_back(length_text(length));
  }
  for (const double depth : depths) {
    map.rows.push_back(percent(depth));
    auto& row = map.cells.emplace_back();
    for (const double length : lengths) {
      const auto found = cells.find({depth, length});
      if (found == cells.end() || found->second.second <= 0) {
        row.push_back({});
        continue;
      }
      const auto [hits, count] = found->second;
      const Interval interval = wilson(hits, count);
      row.push_back({hits / count, rate(hits / count),
                     fmt::format("{} of {} found, 95 % interval {} to {} %", grouped(hits),
                                 grouped(count), rate(interval.low), rate(interval.high))});
    }
  }
  return draw(map);
}

std::string task_map(const std::vector<const json*>& evaluations, const std::string& title) {
  std::vector<std::string> tasks;  // in the order in which they come
  std::set<double> lengths;
  std::map<std::pair<std::string, double>, HeatMap::Cell> cells;
  for (const json* e : evaluations) {
    for (const json& t : array_at(*e, "tasks")) {
      const std::string task = text_at(t, "task");
      const Maybe length = number_at(t, "length"), score = number_at(t, "score");
      if (!length) continue;
      if (std::find(tasks.begin(), tasks.end(), task) == tasks.end()) tasks.push_back(task);
      lengths.insert(*length);
      cells[{task, *length}] = {score, rate(score),
                                fmt::format("{} prompts, 95 % interval {} to {} %",
                                            grouped(number_at(t, "count").value_or(0)),
                                            rate(number_at(t, "low")), rate(number_at(t, "high")))};
    }
  }
  HeatMap map;
  map.title = title;
  map.corner = "task";
  for (const double length : lengths) {
    map.columns.push_back(length_text(length));
  }
  for (const std::string& task : tasks) {
    map.rows.push_back(task);
    auto& row = map.cells.emplace_back();
    for (const double length : lengths) row.push_back(cells[{task, length}]);
  }
  return draw(map);
}

template <class Map>
std::string beside(const Record& record, const std::string& key, const std::string& what,
                   const Map& map) {
  std::string maps = map(teachers(record, key), what + ", teacher");
  if (const json* student = latest_student(record, key)) {
    maps += map({student}, fmt::format("{}, {}", what, text_at(*student, "label")));
  }
  return maps.empty() ? "" : element("div", "class=\"maps\"", "\n" + maps) + "\n";
}

}  // namespace

std::string retrieval_html(const Record& record) {
  const std::string needles = beside(record, "needles", "Needles found", needle_map);
  const std::string tasks = beside(record, "tasks", "Task score", task_map);
  if (needles.empty() && tasks.empty()) return "";
  return section("retrieval", "Retrieval by length",
                 needles + tasks +
                     paragraph("Percent, by prompt length in tokens. A needle counts only when "
                               "greedy generation gives the exact answer; depth is where in the "
                               "prompt it stands."));
}

}  // namespace sala
