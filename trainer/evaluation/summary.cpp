// Wording of results.
#include "trainer/evaluation/summary.h"

#include <fmt/format.h>

#include <map>

namespace sala {

namespace {

using Json = nlohmann::json;

Json member(const Json& object, const char* key) { return object.value(key, Json::object()); }

double value(const Json& object, const char* key) { return object.at(key).get<double>(); }

std::string source_line(const std::string& name, const Json& s) {
  std::string line = fmt::format("{} loss {:.4f}", name, value(s, "loss"));
  if (s.contains("kl")) line += fmt::format(", KL {:.4f}", value(s, "kl"));
  if (s.contains("top1")) line += fmt::format(", top-1 {:.1f} %", 100 * value(s, "top1"));
  return line;
}

std::string choice_line(const std::string& name, const Json& c) {
  return fmt::format(
      "{} acc {:.3f} ± {:.3f}, acc_norm {:.3f} ± {:.3f} ({} questions, chance {:.3f})", name,
      value(c, "acc"), value(c, "acc_se"), value(c, "acc_norm"), value(c, "acc_norm_se"),
      c.at("count").get<int64_t>(), value(c, "chance"));
}

// By length, where JSON's keys are in the order of their text.
std::map<int64_t, double> by_length(const Json& rates) {
  std::map<int64_t, double> sorted;
  for (const auto& [length, rate] : rates.items()) sorted[std::stoll(length)] = rate;
  return sorted;
}

}  // namespace

std::vector<std::string> evaluation_lines(const Json& result) {
  std::vector<std::string> lines;
  const Json sources = member(result, "sources"), choices = member(result, "choices");
  for (const auto& [name, s] : sources.items()) lines.push_back(source_line(name, s));
  for (const auto& [name, c] : choices.items()) lines.push_back(choice_line(name, c));
  std::string needles;
  for (const auto& [length, rate] : by_length(member(result, "needle_rate"))) {
    needles += fmt::format("{} {:.2f} at {}", needles.empty() ? "" : ",", rate, length);
  }
  if (!needles.empty()) lines.push_back("needles" + needles + " tokens");
  for (const auto& [length, mean] : by_length(member(result, "task_mean"))) {
    std::string line = fmt::format("tasks at {} tokens {:.3f}:", length, mean);
    for (const Json& task : result.at("tasks")) {
      if (task.at("length") != length) continue;
      line += fmt::format(" {} {:.2f}", task.at("task").get<std::string>(), value(task, "score"));
    }
    lines.push_back(line);
  }
  return lines;
}

}  // namespace sala
