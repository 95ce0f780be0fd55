// What distill and train share: student, optimizer, loop, one step at a time.
#include "trainer/model_training.h"

#include <fmt/format.h>

#include "trainer/flops.h"
#include "trainer/plan.h"

namespace sala {

void ModelTraining::describe(Fields& fields) {
  budget_.describe(fields);
  optimizer_options_.describe(fields);
  loop_options_.describe(fields, *this);
  loop_options_.describe_model(fields);
}

void ModelTraining::check(const Recipe& recipe, const std::string& path, Problems& problems) const {
  const bool usable = budget_.check(path, recipe, problems);
  optimizer_options_.check(path, usable ? budget_.num_steps() : 0, problems);
}

void ModelTraining::check_data(const Recipe& recipe, const TokenizerIdentity& tokenizer,
                               const StoreCatalog& catalog) const {
  for (const SourceSpec& spec : source_specs(recipe, budget_.data)) {
    if (Source(spec, tokenizer, catalog).has_target()) continue;
    throw std::runtime_error(fmt::format(
        "stage {}: no token of source {} counts as a target, so nothing can be learned from it; "
        "look at its loss_mask",
        name, spec.name));
  }
}

StagePlan ModelTraining::plan(const PlanContext& context) const {
  const bool sparse = loop_options_.attention == "sparse";
  const bool recompute = loop_options_.recompute == "full";
  return plan_model_training(context, budget_, needs_teacher(), sparse, recompute);
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
  optimizer_ = std::make_unique<Optimizer>(run.student.parts, optimizer_options_);
  sharding_ = std::make_unique<Replicated>(run.student.model->part_pointers(), run.world.comm());
  const bool sparse = loop_options_.attention == "sparse";
  double flops = 3 * forward_flops(run.student.model->config(), budget_.row_length, sparse);
  if (needs_teacher()) flops += forward_flops(run.source, budget_.row_length, false);
  loop_ =
      std::make_unique<TrainingLoop>(run, *this, budget_, optimizer_options_, loop_options_, flops);
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
