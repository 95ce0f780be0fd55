// Problems of a recipe, each found a place in the file, in the file's order.
#include "trainer/recipe_problems.h"

#include <algorithm>
#include <tuple>

namespace sala {

void RecipeProblems::add(const std::string& key, const std::string& message) {
  std::string path = key;
  while (!path.empty() && !places_.contains(path)) {
    const size_t cut = path.find_last_of(".[");
    path = cut == std::string::npos ? "" : path.substr(0, cut);
  }
  const auto place = places_.find(path);
  add_at(place == places_.end() ? YamlPlace{} : place->second, key, message);
}

void RecipeProblems::add_at(const YamlPlace& place, const std::string& key,
                            const std::string& message) {
  problems_.push_back({place, key, message});
}

bool RecipeProblems::any_below(const std::string& key) const {
  return std::any_of(problems_.begin(), problems_.end(), [&](const Problem& problem) {
    return problem.key.compare(0, key.size(), key) == 0;
  });
}

std::string RecipeProblems::text() const {
  std::vector<Problem> sorted = problems_;
  std::stable_sort(sorted.begin(), sorted.end(), [](const Problem& a, const Problem& b) {
    return std::tie(a.place.line, a.place.column) < std::tie(b.place.line, b.place.column);
  });
  std::string out;
  for (const Problem& problem : sorted) {
    if (!out.empty()) out += '\n';
    out += problem.place.text();
    if (problem.message.empty()) continue;
    if (!problem.key.empty()) out += ": " + problem.key;
    out += ": " + problem.message;
  }
  return out;
}

}  // namespace sala
