// What distill and train share: student, optimizer, loop, one step at a time.
#include "trainer/stages/model_training.h"

#include <fmt/format.h>

#include "trainer/flops.h"
#include "trainer/plan.h"
#include "trainer/recipe/amount_text.h"

namespace sala {

void ModelTraining::describe(Fields& fields) {
  budget_.describe(fields);
  optimizer_options_.describe(fields, Need::kOptional);
  loop_options_.describe(fields, *this);
  loop_options_.describe_model(fields);
}

void ModelTraining::check(const Recipe& recipe, const std::string& path, Problems& problems) const {
  const bool usable = budget_.check(path, recipe, problems);
  optimizer_options_.check(path, usable ? budget_.num_steps() : 0, problems);
}

void ModelTraining::check_inputs(const StageInputs& inputs, Problems& problems) const {
  for (const auto& [source, weight] : budget_.data) {
    const auto found = inputs.sources.find(source);
    if (found == inputs.sources.end() || found->second.has_target()) continue;
    problems.add(path + ".data." + source,
                 "no token of it counts as a target, so nothing can be learned from it; look at "
                 "its loss_mask");
  }
}

StagePlan ModelTraining::plan(const PlanContext& context) const {
  const bool sparse = loop_options_.attention == "sparse";
  const bool recompute = loop_options_.recompute == "full";
  StagePlan plan = plan_model_training(context, budget_, needs_teacher(), sparse, recompute);
  plan.advice = lr_advice(context.hybrid);
  return plan;
}

void ModelTraining::begin(Run& run) {
  if (!run.student.model) {  // continual training of the source itself
    run.make_student(run.source);
    run.world.together("reading " + run.recipe.source, [&] {
      Model& teacher = run.teacher();
      for (size_t p = 0; p < run.student.parts.size(); ++p) {
        run.student.parts[p].master.copy_(teacher.parts()[p].flat);
        refresh(run.student.parts[p]);
      }
    });
  }
  if (!needs_teacher()) run.drop_teacher();
  loss_ = make_loss(run);
  OptimizerOptions optimizer = optimizer_options_;
  optimizer.schedule.lr = peak_lr(run.student.model->config());
  if (const std::string advice = lr_advice(run.student.model->config()); !advice.empty()) {
    run.metrics.note(advice);
  }
  optimizer_ = std::make_unique<Optimizer>(run.student.parts, optimizer);
  sharding_ = std::make_unique<Replicated>(run.student.model->part_pointers(), run.world.comm());
  const bool sparse = loop_options_.attention == "sparse";
  double flops = 3 * forward_flops(run.student.model->config(), budget_.row_length, sparse);
  if (needs_teacher()) flops += forward_flops(run.source, budget_.row_length, false);
  loop_ = std::make_unique<TrainingLoop>(run, *this, budget_, optimizer, loop_options_, flops);
}

double ModelTraining::peak_lr(const ModelConfig& config) const {
  const double lr = optimizer_options_.schedule.lr;
  return lr > 0 ? lr : safe_lr(num_parameters(config));
}

std::string ModelTraining::lr_advice(const ModelConfig& config) const {
  constexpr double kFar = 3;  // times the safe rate: rates of recipes that work reach about twice
  const double lr = optimizer_options_.schedule.lr, safe = safe_lr(num_parameters(config));
  const std::string size = amount_text(static_cast<double>(num_parameters(config)));
  if (lr == 0) return fmt::format("stage {}: lr {:.2g}, by its {} parameters", name, safe, size);
  if (lr <= kFar * safe) return "";
  return fmt::format(
      "warning: stage {}: lr {:.2g} is {:.0f} times what HALO's table gives for {} parameters "
      "({:.2g}); such rates have destroyed pretrained models: look at the first losses",
      name, lr, lr / safe, size, safe);
}

bool ModelTraining::advance(Run& run) {
  if (loop_->done()) return false;
  TrainingLoop::Input input = loop_->next();
  if (input.num_target_tokens == 0) {
    loop_->pass_over(input);
    return true;
  }
  StepOptions options;
  options.lr = input.lr;
  options.clip = optimizer_options_.clip;
  options.recompute = loop_options_.recompute == "full";
  options.sparse = loop_options_.attention == "sparse";
  Model& model = *run.student.model;
  const StepResult result = train_step(model, *loss_, input.micro_batches, *sharding_, *optimizer_,
                                       run.world.comm(), options);
  nlohmann::json units = nlohmann::json::object();
  for (size_t p = 0; p < model.parts().size(); ++p) {
    if (optimizer_->trains(p)) units[model.parts()[p].layout().name] = result.part_norms[p];
  }
  loop_->finish(result.loss.loss, result.finite,
                {{"kl", result.loss.kl},
                 {"ce", result.loss.ce},
                 {"lr", input.lr},
                 {"grad_norm", result.grad_norm},
                 {"grad_norms", units}});
  return true;
}

void ModelTraining::end(Run&) {
  loop_.reset();
  sharding_.reset();
  optimizer_->release();
  optimizer_.reset();
  loss_.reset();
}

void ModelTraining::save(StateWriter& out) const {
  loop_->save(out);
  optimizer_->save(out);
}

void ModelTraining::load(StateReader& in) {
  loop_->load(in);
  optimizer_->load(in);
}

}  // namespace sala
