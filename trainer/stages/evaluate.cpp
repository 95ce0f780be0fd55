// Evaluation as a stage of its own. Its options also serve the evaluations inside loops and after a
// swap.
#include <fmt/format.h>
#include <algorithm>
#include <span>

#include "data/eval_rows.h"
#include "data/needles.h"
#include "trainer/evaluation/evaluate.h"
#include "trainer/evaluation/question_checks.h"
#include "trainer/evaluation/tasks.h"
#include "trainer/planning/flops.h"
#include "trainer/planning/plan.h"
#include "trainer/recipe/field_values.h"
#include "trainer/recipe/stage_options.h"
#include "trainer/stages/one_step.h"

namespace sala {

void EvaluateOptions::describe(Fields& fields) {
  fields.texts("sources", sources, Need::kOptional, "Held-out sources to measure loss on.");
  fields.count("tokens", tokens, Need::kOptional, "Tokens per held-out source, at most.",
               {2, kMostBatchTokens});
  fields.count("row_length", row_length, Need::kOptional,
               "Tokens per held-out row: one window of one document.", {2, kMostRowTokens});
  fields.count("context", context, Need::kOptional,
               "Ranks that share each held-out row; a divisor of the number of ranks.",
               {1, 1 << 16});
  fields.flag("kl", kl, Need::kOptional,
              "Also the KL to the teacher, and the share of tokens whose likeliest id is the "
              "teacher's.");
  fields.flag("sparse", sparse, Need::kOptional,
              "Documents of dense_len tokens and more use block-sparse attention.");
  fields.counts("needle_lengths", needle_lengths, Need::kOptional,
                "Prompt lengths in tokens for needle retrieval; empty: none.", {1, kMostRowTokens});
  fields.numbers("needle_depths", needle_depths, Need::kOptional,
                 "Where in the haystack the needle stands, 0 to 1.");
  fields.count("needles_per_cell", needles_per_cell, Need::kOptional,
               "Needles for each length and depth. Those of a length are different ones, as far as "
               "data.needles has so many; all lengths have the same.",
               {1, 1 << 20});
  fields.text("needle_source", needle_source, Need::kOptional,
              "Source that haystacks are cut from.");
  fields.texts("choices", choices, Need::kOptional,
               "Multiple-choice sets of data.choices, by name; empty: none.");
  fields.count("choices_items", choices_items, Need::kOptional,
               "Questions of each set (of each of its tasks), at most.", {1, 1 << 20});
  fields.texts("tasks", tasks, Need::kOptional,
               "Tasks of data.tasks by name (niah_single_1, vt, …), or all; empty: none.");
  fields.counts("task_lengths", task_lengths, Need::kOptional,
                "Lengths of data.tasks that are asked, in tokens; empty: all of them.",
                {1, kMostRowTokens});
  fields.count("task_items", task_items, Need::kOptional,
               "Prompts for each task and length, at most.", {1, 1 << 20});
}

void EvaluateOptions::check(const Recipe& recipe, const std::string& path,
                            Problems& problems) const {
  auto known = [&](const std::string& key, const std::string& name) {
    if (problems.knows("data.sources") && !recipe.data.sources.contains(name)) {
      problems.add(path + "." + key, fmt::format("'{}': {}", shown(name), no_such_source(recipe)));
    }
  };
  if (problems.clean(path + ".sources")) {
    for (const std::string& name : sources) known("sources", name);
  }
  if (problems.knows(path + ".row_length") && tokens < row_length) {
    problems.add(path + ".tokens",
                 fmt::format("{} is less than one row of {} tokens", tokens, row_length));
  }
  check_questions(recipe, path, problems);
  if (needle_lengths.empty()) return;
  if (needle_source.empty()) {
    problems.add(path + ".needle_lengths", "needs needle_source, whose text the haystacks are");
  } else {
    known("needle_source", needle_source);
  }
  if (needle_depths.empty()) problems.add(path + ".needle_depths", "names no depth");
  if (problems.knows("data.needles") && recipe.data.needles.empty()) {
    problems.add(path + ".needle_lengths", "needs data.needles, the needle set of data/prepare");
  }
  for (double depth : needle_depths) {
    if (!(depth >= 0 && depth <= 1)) {
      problems.add(path + ".needle_depths", fmt::format("{} is not between 0 and 1", depth));
    }
  }
}

namespace {

class EvaluateStage : public OneStepStage {
 public:
  std::string type() const override { return "evaluate"; }
  bool changes_model() const override { return false; }
  int64_t context() const override { return options.context; }
  void describe(Fields& fields) override { options.describe(fields); }
  void check(const Recipe& recipe, const std::string& path, Problems& problems) const override {
    options.check(recipe, path, problems);
  }
  StagePlan plan(const PlanContext& context) const override {
    const int64_t tokens = options.tokens * static_cast<int64_t>(options.sources.size());
    StagePlan plan = plan_forward(context, tokens, options.row_length, true);
    plan.steps = 1;
    plan.batch_bytes = 16.0 * static_cast<double>(options.tokens);
    for (const auto& [length, prompts] : context.task_lengths) {
      if (options.tasks.empty() || chosen_lengths(options, {{length, prompts}}).empty()) continue;
      const auto most = static_cast<double>(prompts * length);
      plan.flops += most * (forward_flops(context.source, length, false) +
                            forward_flops(context.hybrid, length, true));
    }
    plan.activation_bytes = evaluation_moment_bytes(context, options);
    return plan;
  }
  void check_inputs(const StageInputs& inputs, Problems& problems) override {
    check_sources_have_targets(inputs, problems);
    check_context(path, options.context, options.row_length, problems);
    check_question_inputs(options, path, inputs, problems);
    if (options.needle_lengths.empty()) return;
    if (inputs.needles != nullptr) check_needle_lengths(*inputs.needles, problems);
    const auto haystack = inputs.sources.find(options.needle_source);
    if (haystack != inputs.sources.end() && !has_text(haystack->second)) {
      problems.add(path + ".needle_source",
                   fmt::format("source {} has no text for a haystack: its documents hold nothing "
                               "but their end",
                               options.needle_source));
    }
  }

  int64_t longest_row() const override {
    int64_t longest = options.sources.empty() ? 0 : options.row_length;
    for (int64_t length : options.needle_lengths) longest = std::max(longest, length);
    if (options.tasks.empty()) return longest;
    for (int64_t length : options.task_lengths) longest = std::max(longest, length);
    return longest;
  }

  EvaluateOptions options;

 protected:
  void work(Run& run) override { evaluate_and_record(run, options, name); }

 private:
  static bool has_text(const Source& source) {
    return source.num_tokens() > source.num_documents();
  }

  // The rows that will be measured: fixed windows, so this is what the run will find.
  void check_sources_have_targets(const StageInputs& inputs, Problems& problems) const {
    for (const std::string& name : options.sources) {
      const auto source = inputs.sources.find(name);
      if (source == inputs.sources.end()) continue;
      constexpr int64_t kMostRows = 4096;  // where more are measured, others may have targets
      const int64_t num_rows = std::max<int64_t>(1, options.tokens / options.row_length);
      const auto seed = static_cast<uint64_t>(inputs.recipe.run.seed);
      const auto rows =
          plan_eval_rows(source->second, options.row_length, std::min(num_rows, kMostRows), seed);
      const bool any = std::any_of(rows.begin(), rows.end(), [&](const RowPlan& row) {
        return count_targets(std::span(&source->second, 1), row) > 0;
      });
      if (any || num_rows > kMostRows) continue;
      problems.add(path + ".sources",
                   fmt::format("held-out source {} has no token to predict in its first {} tokens: "
                               "every document is one token long, or its loss mask is 0",
                               name, options.tokens));
    }
  }

  void check_needle_lengths(const NeedleSet& needles, Problems& problems) const {
    const int64_t depths = static_cast<int64_t>(options.needle_depths.size());
    const int64_t used = std::min(options.needles_per_cell * depths, needles.size());
    int64_t longest = 0;
    for (int64_t i = 0; i < used; ++i) {
      longest = std::max(
          longest, needles.num_start() +
                       static_cast<int64_t>(needles[i].needle.size() + needles[i].question.size()));
    }
    for (int64_t length : options.needle_lengths) {
      if (length > longest) continue;
      problems.add(path + ".needle_lengths",
                   fmt::format("a prompt of {} tokens has no room for a haystack: needle and "
                               "question take up to {}; use longer prompts",
                               length, longest));
      break;
    }
  }
};

}  // namespace

const EvaluateOptions* evaluate_options(const Recipe& recipe) {
  for (const auto& stage : recipe.stages) {
    if (auto* evaluate = dynamic_cast<const EvaluateStage*>(stage.get())) {
      return &evaluate->options;
    }
  }
  return nullptr;
}

std::unique_ptr<Stage> make_evaluate_stage() { return std::make_unique<EvaluateStage>(); }

}  // namespace sala
