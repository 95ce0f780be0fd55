// What the manifest of a checkpoint says to a recipe.
#include "trainer/start/fork.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <stdexcept>

#include "trainer/checkpoint/folder.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/journal/recipe_record.h"

namespace sala {

namespace fs = std::filesystem;

namespace {

// "align.name: web" for each stage of a recipe's record, in order.
std::vector<std::string> stages_of(const nlohmann::json& record) {
  std::map<int64_t, std::string> by_index;
  for (const auto& [path, value] : record.items()) {
    if (!path.starts_with("stages[") || !path.ends_with(".name")) continue;
    const size_t dot = path.find('.');
    if (std::count(path.begin(), path.end(), '.') != 2) continue;
    by_index[std::stoll(path.substr(7))] = path.substr(dot + 1) + ": " + value.get<std::string>();
  }
  std::vector<std::string> stages;
  for (const auto& [index, stage] : by_index) stages.push_back(stage);
  return stages;
}

// Stage and step of a recipe at which the checkpoint goes on.
void find_place(Recipe& recipe, const Manifest& manifest, Beginning& begin) {
  const std::vector<std::string> saved = stages_of(manifest.recipe);
  const std::vector<std::string> now = stages_of(recipe_record(recipe));
  const auto behind = std::min<size_t>(saved.size(), manifest.id.stage_index);
  const bool same =
      behind <= now.size() && std::equal(now.begin(), now.begin() + behind, saved.begin());
  const size_t first = same ? behind : 0;
  begin.stage = static_cast<int64_t>(first);
  const bool goes_on = first < now.size() && behind < saved.size() && now[first] == saved[behind];
  begin.step = goes_on ? manifest.id.step : 0;
}

void read_state(const nlohmann::json& state, Beginning& begin) try {
  begin.mixers = state.at("has_aligned").get<bool>();
  begin.scores = !state.at("scores").is_null();
  begin.model = state.at("has_student").get<bool>();
  begin.hybrid = state.value("hybrid", false);
  begin.kept = state.value("kept", std::vector<int64_t>());
} catch (const nlohmann::json::exception& error) {
  throw std::runtime_error(fmt::format(
      "{}: its manifest does not say what the run had come to ({}); choose another checkpoint",
      begin.checkpoint, error.what()));
}

Beginning from_record(const Recipe& recipe, const nlohmann::json& record,
                      const std::string& checkpoint) {
  Beginning begin;
  begin.checkpoint = checkpoint;
  if (record.is_null()) return begin;
  const auto num_stages = static_cast<int64_t>(recipe.stages.size());
  begin.stage = std::min(record.at("stage").get<int64_t>(), num_stages);
  begin.step = record.at("step").get<int64_t>();
  read_state(record, begin);
  return begin;
}

}  // namespace

Beginning find_beginning(Recipe& recipe, const std::string& from) {
  std::optional<Manifest> own;
  if (recipe.problems.knows("run.folder")) {
    own = newest_manifest(recipe.run.folder + "/checkpoints");
  }
  if (own) {
    const nlohmann::json state = own->state.at("run");
    const std::string forked_from = state.value("forked_from", "");
    if (from.empty() || is_same_checkpoint(forked_from, from)) {
      return from_record(recipe, state.value("began_with", nlohmann::json()), forked_from);
    }
  }
  Beginning begin;
  if (from.empty()) return begin;
  const Manifest manifest = read_manifest(from);
  begin.checkpoint = from;
  find_place(recipe, manifest, begin);
  read_state(manifest.state.at("run"), begin);
  return begin;
}

bool is_same_checkpoint(const std::string& a, const std::string& b) {
  if (a == b || a.empty() || b.empty()) return a == b;
  const auto resolved = [](const std::string& path) {
    std::error_code ignored;
    const fs::path whole = fs::weakly_canonical(fs::absolute(path), ignored);
    return whole.has_filename() ? whole : whole.parent_path();  // without a slash at its end
  };
  return resolved(a) == resolved(b);
}

nlohmann::json beginning_record(const Beginning& begin) {
  if (begin.checkpoint.empty()) return nullptr;
  // The state by the names that a checkpoint's own state has.
  return {{"stage", begin.stage},
          {"step", begin.step},
          {"has_aligned", begin.mixers},
          {"scores", begin.scores ? nlohmann::json(true) : nlohmann::json()},
          {"has_student", begin.model},
          {"hybrid", begin.hybrid},
          {"kept", begin.kept}};
}

}  // namespace sala
