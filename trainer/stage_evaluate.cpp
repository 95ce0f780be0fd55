// Evaluation as a stage of its own. Its options also serve the evaluations inside loops and after a
// swap.
#include <fmt/format.h>
#include <algorithm>

#include "trainer/evaluate.h"
#include "trainer/plan.h"

namespace sala {

void EvaluateOptions::describe(Fields& fields) {
  fields.texts("sources", sources, Need::kOptional, "Held-out sources to measure loss on.");
  fields.count("tokens", tokens, Need::kOptional, "Tokens per held-out source, at most.");
  fields.count("row_length", row_length, Need::kOptional,
               "Tokens per held-out row: one window of one document.");
  fields.flag("kl", kl, Need::kOptional, "Also the KL to the teacher.");
  fields.flag("sparse", sparse, Need::kOptional,
              "Documents of dense_len tokens and more use block-sparse attention.");
  fields.counts("needle_lengths", needle_lengths, Need::kOptional,
                "Prompt lengths in tokens for needle retrieval; empty: none.");
  fields.numbers("needle_depths", needle_depths, Need::kOptional,
                 "Where in the haystack the needle stands, 0 to 1.");
  fields.count("needles_per_cell", needles_per_cell, Need::kOptional,
               "Needles for each length and depth.");
  fields.text("needle_source", needle_source, Need::kOptional,
              "Source that haystacks are cut from.");
}

void EvaluateOptions::check(const Recipe& recipe, const std::string& path,
                            Problems& problems) const {
  auto known = [&](const std::string& key, const std::string& name) {
    if (!recipe.data.sources.count(name)) {
      problems.add(path + "." + key, fmt::format("data.sources has no source '{}'", name));
    }
  };
  for (const std::string& name : sources) known("sources", name);
  if (row_length < 2) problems.add(path + ".row_length", "must be at least 2 tokens");
  if (tokens < row_length) {
    problems.add(path + ".tokens",
                 fmt::format("{} is less than one row of {} tokens", tokens, row_length));
  }
  if (needle_lengths.empty()) return;
  known("needle_source", needle_source);
  if (recipe.data.needles.empty()) {
    problems.add(path + ".needle_lengths", "needs data.needles, the needle set of data/prepare");
  }
  for (double depth : needle_depths) {
    if (!(depth >= 0 && depth <= 1)) {
      problems.add(path + ".needle_depths", fmt::format("{} is not between 0 and 1", depth));
    }
  }
}

namespace {

class EvaluateStage : public Stage {
 public:
  std::string type() const override { return "evaluate"; }
  bool changes_model() const override { return false; }
  void describe(Fields& fields) override { options.describe(fields); }
  void check(const Recipe& recipe, const std::string& path, Problems& problems) const override {
    options.check(recipe, path, problems);
  }
  StagePlan plan(const PlanContext& context) const override {
    const int64_t tokens = options.tokens * static_cast<int64_t>(options.sources.size());
    StagePlan plan = plan_forward(context, tokens, options.row_length, true);
    plan.steps = 1;
    return plan;
  }
  void begin(Run&) override {}
  bool advance(Run& run) override {
    if (done_) return false;
    evaluate_and_record(run, options, name);
    done_ = true;
    return true;
  }
  void end(Run&) override {}
  void save(StateWriter& out) const override { out.json("evaluate", {{"done", done_}}); }
  void load(StateReader& in) override { done_ = in.json("evaluate").at("done").get<bool>(); }
  int64_t longest_row() const override {
    int64_t longest = options.sources.empty() ? 0 : options.row_length;
    for (int64_t length : options.needle_lengths) longest = std::max(longest, length);
    return longest;
  }
  int64_t step() const override { return done_ ? 1 : 0; }
  int64_t num_steps() const override { return 1; }

  EvaluateOptions options;

 private:
  bool done_ = false;
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
