// How much each layer matters: one of the methods of trainer/scores, run to its end.
#include "trainer/planning/plan.h"
#include "trainer/recipe/recipe.h"
#include "trainer/run.h"
#include "trainer/scores/method.h"
#include "trainer/scores/record.h"

namespace sala {

namespace {

class ScoreStage : public Stage {
 public:
  std::string type() const override { return "score"; }
  void describe(Fields& fields) override { options_.describe(fields); }
  void check(const Recipe& recipe, const std::string& path, Problems& problems) const override {
    options_.check(recipe, path, problems);
  }
  void check_inputs(const StageInputs& inputs, Problems& problems) override {
    options_.check_inputs(path, inputs, problems);
  }
  bool needs_full_source() const override { return true; }
  bool needs_mixers() const override { return options_.measures(); }
  StagePlan plan(const PlanContext& context) const override { return options_.plan(context); }
  int64_t longest_row() const override { return options_.measures() ? options_.row_length : 0; }

  void begin(Run&) override { steps_told_ = 0; }

  bool advance(Run& run) override {
    if (!method_) method_ = make_score_method(run, options_, name, steps_told_);
    return method_->advance(run);
  }

  void end(Run& run) override {
    run.scores = {{"stage", name}, {"method", options_.method}};
    run.scores.update(method_->scores(run));
    tell_scores(run);
    run.world.together("scores", [&] {
      if (run.world.rank() == 0) write_scores(run);
    });
    method_.reset();
  }

  // What was done is on disk already, item by item; a checkpoint knows what metrics were told.
  void save(StateWriter& out) const override {
    out.json("score", {{"method", options_.method}, {"step", step()}});
  }
  void load(StateReader& in) override { steps_told_ = in.json("score").value("step", int64_t{0}); }
  // A start that goes on takes the steps that are on disk again: as far as was told it is already.
  int64_t step() const override { return std::max(steps_told_, method_ ? method_->step() : 0); }
  int64_t num_steps() const override { return method_ ? method_->num_steps() : 1; }

 private:
  ScoreOptions options_;
  int64_t steps_told_ = 0;
  std::unique_ptr<ScoreMethod> method_;
};

}  // namespace

std::unique_ptr<Stage> make_score_stage() { return std::make_unique<ScoreStage>(); }

}  // namespace sala
