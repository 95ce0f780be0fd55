// Comparing recipes value by value.
#include "trainer/journal/recipe_record.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <map>
#include <set>

namespace sala {
namespace {

bool is_stage(const std::string& path) { return path.starts_with("stages["); }

int64_t stage_of(const std::string& path) {
  return is_stage(path) ? std::stoll(path.substr(7)) : 0;
}

// What files hold is compared by content (trainer/checks/input_identity.h), so they may be moved.
bool is_free(const std::string& path) {
  for (const char* free :
       {"source", "run.folder", "run.device", "run.sharding", "run.shard_ranks", "run.kernels",
        "run.deterministic", "run.keep_checkpoints", "data.needles", "data.tasks"}) {
    if (path == free) return true;
  }
  if (path.starts_with("data.choices")) return true;
  if (path.starts_with("data.sources.") && path.ends_with(".files")) return true;
  if (!is_stage(path)) return false;
  // stages[2].train.context, but not stages[2].train.data.context: the weight of such a source.
  const size_t key = path.find('.', path.find('.') + 1);
  const std::string name = key == std::string::npos ? "" : path.substr(key + 1);
  for (const char* free :
       {"save_every", "evaluate_every", "micro_tokens", "context", "recompute", "teacher_cache"}) {
    if (name == free) return true;
  }
  return path.ends_with(".export.folder");
}

// stages[2].train.lr to stages[].train.lr, as recipe_keys() has it.
std::string without_indices(const std::string& path) {
  std::string key;
  bool inside = false;
  for (const char c : path) {
    inside = inside && c != ']';
    if (!inside) key += c;
    inside = inside || c == '[';
  }
  return key;
}

// What a record says of a key. One that it lacks was not there yet in the program that wrote it,
// which did what the key's default does.
std::string value_in(const nlohmann::json& record, const std::string& path) {
  static const std::map<std::string, std::string> defaults = [] {
    std::map<std::string, std::string> values;
    for (const KeyDoc& key : recipe_keys()) {
      if (key.fallback != "required") values[key.path] = key.fallback;
    }
    return values;
  }();
  if (record.contains(path)) return record.at(path).get<std::string>();
  const auto found = defaults.find(without_indices(path));
  return found != defaults.end() ? found->second : "(absent)";
}

}  // namespace

nlohmann::json recipe_record(Recipe& recipe) {
  nlohmann::json record = nlohmann::json::object();
  for (const auto& [path, value] : recipe_values(recipe)) record[path] = value;
  // As a checkpoint gives it back: bytes that are no UTF-8 replaced.
  return nlohmann::json::parse(
      record.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

std::string changes_text(const std::vector<RecipeChange>& changes) {
  constexpr size_t kMost = 8;  // a stage that was put between others changes all their keys
  std::vector<std::string> texts;
  for (const RecipeChange& change : changes) {
    if (texts.size() < kMost) texts.push_back(change.text);
  }
  if (changes.size() > kMost) texts.push_back(fmt::format("{} more", changes.size() - kMost));
  return fmt::format("{}", fmt::join(texts, "; "));
}

std::vector<RecipeChange> recipe_changes(const nlohmann::json& saved, const nlohmann::json& now,
                                         int64_t stages_begun) {
  std::set<std::string> paths;
  for (const auto& [path, _] : saved.items()) paths.insert(path);
  for (const auto& [path, _] : now.items()) paths.insert(path);
  std::vector<RecipeChange> changes;
  for (const std::string& path : paths) {
    if (is_free(path) || (is_stage(path) && stage_of(path) >= stages_begun)) continue;
    const std::string before = value_in(saved, path), after = value_in(now, path);
    if (before != after) {
      changes.push_back({fmt::format("{}: {} -> {}", path, before, after), stage_of(path)});
    }
  }
  return changes;
}

}  // namespace sala
