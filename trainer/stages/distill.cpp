// Distillation: KL between the teacher's and the hybrid's full next-token distributions, all
// tokens.
#include <fmt/format.h>

#include "trainer/stages/model_training.h"

namespace sala {

namespace {

class DistillStage : public ModelTraining {
 public:
  std::string type() const override { return "distill"; }

  void describe(Fields& fields) override {
    ModelTraining::describe(fields);
    fields.number("temperature", config_.temperature, Need::kOptional,
                  "Softens both distributions; the KL is multiplied by its square.");
    fields.number("ce_weight", config_.ce_weight, Need::kOptional,
                  "Share of next-token loss in the loss, 0 to 1; the rest is KL.");
  }

  void check(const Recipe& recipe, const std::string& path, Problems& problems) const override {
    ModelTraining::check(recipe, path, problems);
    if (!(config_.temperature > 0)) {
      problems.add(path + ".temperature",
                   fmt::format("must be more than 0, but is {}", config_.temperature));
    }
    if (!(config_.ce_weight >= 0 && config_.ce_weight <= 1)) {
      problems.add(path + ".ce_weight",
                   fmt::format("must be between 0 and 1, but is {}", config_.ce_weight));
    }
  }

 protected:
  std::unique_ptr<Loss> make_loss(Run& run) const override {
    return std::make_unique<DistillLoss>(run.teacher(), config_);
  }
  bool needs_teacher() const override { return true; }

 private:
  DistillConfig config_;
};

}  // namespace

std::unique_ptr<Stage> make_distill_stage() { return std::make_unique<DistillStage>(); }

}  // namespace sala
