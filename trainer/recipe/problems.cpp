// Problems of a recipe, each found a place in the file, in the file's order.
#include "trainer/recipe/problems.h"

#include <algorithm>
#include <stdexcept>
#include <tuple>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "trainer/recipe/field_values.h"

namespace sala {

namespace {

constexpr size_t kMostLines = 50;
constexpr size_t kMostBytes = 2000;  // of one line

// "stages[2].distill.lr" -> "stages[2].distill" -> "stages[2]" -> "stages" -> "".
std::string outer(const std::string& key) {
  const size_t cut = key.find_last_of(".[");
  return cut == std::string::npos ? "" : key.substr(0, cut);
}

bool is_within(const std::string& key, const std::string& section) {
  if (section.empty()) return true;
  if (key.compare(0, section.size(), section) != 0) return false;
  return key.size() == section.size() || key[section.size()] == '.' || key[section.size()] == '[';
}

}  // namespace

void RecipeProblems::add(const std::string& key, const std::string& message) {
  if (!knows(key)) return;
  std::string path = key;
  while (!path.empty() && !places_.contains(path)) path = outer(path);
  const auto place = places_.find(path);
  add_at(place == places_.end() ? YamlPlace{} : place->second, key, message);
}

void RecipeProblems::add_unread(const std::string& key, const std::string& message) {
  add(key, message);
  mark_unread(key);
}

void RecipeProblems::add_at(const YamlPlace& place, const std::string& key,
                            const std::string& message) {
  problems_.push_back({place, key, message});
}

bool RecipeProblems::knows(const std::string& key) const {
  if (unread_.empty()) return true;
  for (std::string path = key;; path = outer(path)) {
    if (unread_.contains(path)) return false;
    if (path.empty()) return true;
  }
}

bool RecipeProblems::clean(const std::string& key) const {
  const auto within = [&](const std::string& other) { return is_within(other, key); };
  return knows(key) && std::none_of(unread_.begin(), unread_.end(), within) &&
         std::none_of(problems_.begin(), problems_.end(),
                      [&](const Problem& problem) { return within(problem.key); });
}

std::vector<std::string> RecipeProblems::lines() const {
  std::vector<Problem> sorted = problems_;
  std::stable_sort(sorted.begin(), sorted.end(), [](const Problem& a, const Problem& b) {
    return std::tie(a.place.line, a.place.column) < std::tie(b.place.line, b.place.column);
  });
  std::vector<std::string> lines;
  for (const Problem& problem : sorted) {
    if (lines.size() == kMostLines) {
      lines.push_back(fmt::format("and {} more", sorted.size() - kMostLines));
      break;
    }
    std::string line = problem.place.text();
    for (const std::string& part : {problem.key, problem.message}) {
      if (!part.empty()) line += (line.empty() ? "" : ": ") + part;
    }
    lines.push_back(shown(line, kMostBytes));
  }
  return lines;
}

std::string RecipeProblems::text() const { return fmt::format("{}", fmt::join(lines(), "\n")); }

void RecipeProblems::raise() const {
  if (!empty()) throw std::runtime_error(text());
}

}  // namespace sala
