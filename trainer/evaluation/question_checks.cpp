// The checks behind trainer/evaluation/question_checks.h, and the recipe's own.
#include "trainer/evaluation/question_checks.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "data/questions/choice_set.h"
#include "trainer/evaluation/tasks.h"
#include "trainer/recipe/field_values.h"
#include "trainer/recipe/recipe.h"

namespace sala {

// Sets and tasks that the recipe has no file for.
void EvaluateOptions::check_questions(const Recipe& recipe, const std::string& path,
                                      Problems& problems) const {
  std::vector<std::string> names;
  for (const std::string& file : recipe.data.choices) names.push_back(choice_set_name(file));
  const bool read = problems.clean(path + ".choices") && problems.clean("data.choices");
  for (const std::string& name : read ? choices : std::vector<std::string>()) {
    const auto count = std::count(names.begin(), names.end(), name);
    if (count == 1) continue;
    problems.add(
        path + ".choices",
        count > 1
            ? fmt::format("'{}': two files of data.choices have this name; give "
                          "one of them another",
                          shown(name))
            : fmt::format("'{}': no set of data.choices has this name (there {}: "
                          "{})",
                          shown(name), names.size() == 1 ? "is" : "are",
                          names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", "))));
  }
  if (!tasks.empty() && problems.knows("data.tasks") && recipe.data.tasks.empty()) {
    problems.add(path + ".tasks", "needs data.tasks, prompts made by `data/prepare ruler`");
  }
}

namespace {

void check_tasks(const EvaluateOptions& options, const std::string& path, const TaskSet& set,
                 Problems& problems) {
  const std::vector<std::string> there = set.tasks();
  for (const std::string& name : options.tasks) {
    if (name == "all" || std::find(there.begin(), there.end(), name) != there.end()) continue;
    problems.add(path + ".tasks", fmt::format("'{}': data.tasks has no such task; it has {}",
                                              shown(name), fmt::join(there, ", ")));
  }
  const auto lengths = set.lengths();
  std::vector<std::string> texts;
  for (const auto& [length, prompts] : lengths) texts.push_back(std::to_string(length));
  for (const int64_t length : options.task_lengths) {
    if (options.tasks.empty() || lengths.contains(length)) continue;
    problems.add(path + ".task_lengths",
                 fmt::format("{}: data.tasks has prompts of {} tokens; make others with "
                             "`data/prepare ruler --lengths`",
                             length, fmt::join(texts, ", ")));
  }
}

}  // namespace

void check_question_inputs(const EvaluateOptions& options, const std::string& path,
                           const StageInputs& inputs, Problems& problems) {
  if (inputs.tasks != nullptr) check_tasks(options, path, *inputs.tasks, problems);
  const int64_t window = inputs.context ? inputs.context->source.sliding_window : 0;
  const auto expect_inside = [&](const char* key, int64_t length) {
    if (window == 0 || length <= window) return;
    problems.add(path + key,
                 fmt::format("prompts of up to {} tokens, but {} attends only {} tokens back "
                             "(sliding_window) and is run here with full attention: ask shorter "
                             "ones",
                             length, shown(inputs.recipe.source), window));
  };
  if (inputs.tasks != nullptr && !options.tasks.empty()) {
    const auto lengths = chosen_lengths(options, inputs.tasks->lengths());
    if (!lengths.empty()) expect_inside(".tasks", lengths.back());
  }
  for (const std::string& name : options.choices) {
    const auto set = inputs.choices.find(name);
    if (set != inputs.choices.end()) expect_inside(".choices", set->second.longest_document());
  }
}

}  // namespace sala
