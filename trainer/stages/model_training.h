// Stages that train the whole model with the training step; they differ in the loss and in what
// trains.
#pragma once

#include <memory>

#include "trainer/losses.h"
#include "trainer/stage.h"
#include "trainer/stages/training_loop.h"
#include "trainer/step.h"

namespace sala {

class ModelTraining : public Stage {
 public:
  void describe(Fields& fields) override;
  void check(const Recipe& recipe, const std::string& path, Problems& problems) const override;
  void check_inputs(const StageInputs& inputs, Problems& problems) override;
  StagePlan plan(const PlanContext& context) const override;
  void begin(Run& run) override;
  bool advance(Run& run) override;
  void end(Run& run) override;
  void save(StateWriter& out) const override;
  void load(StateReader& in) override;
  bool trains() const override { return true; }
  int64_t context() const override { return loop_options_.context; }
  int64_t step() const override { return loop_ ? loop_->step() : 0; }
  int64_t num_steps() const override { return budget_.num_steps(); }

 protected:
  virtual std::unique_ptr<Loss> make_loss(Run& run) = 0;
  virtual bool needs_teacher() const { return false; }  // the source model in its steps
  // For a model of this config: the recipe's, the rate by the model's size where it names none.
  virtual OptimizerOptions optimizer_options(const ModelConfig& config) const;

  TokenBudget suited_budget(const PlanContext& context) const;

  TokenBudget budget_;
  OptimizerOptions optimizer_options_;
  LoopOptions loop_options_;
  double selection_weight_ = 0;
  std::string on_spike_ = "warn";  // warn | skip | stop: a step outside its band (SpikeWatch)

 private:
  static void start_from_source(Run& run);
  void check_optimizer(const ModelConfig& config, Problems& problems) const;
  double peak_lr(const ModelConfig& config) const;  // the recipe's, or by the model's size
  SelectionLossOptions selection(const ModelConfig& config) const;
  std::string selection_advice(const ModelConfig& config) const;  // where it teaches nothing
  // One line about products in FP8; empty without.
  std::string matmul_advice(const ModelConfig& config, const TokenBudget& budget) const;
  std::string micro_batch_advice(const TokenBudget& budget) const;  // where it is larger than usual
  // Throws where inputs of blocks have no room (recompute: offload).
  void check_host_memory(Run& run, const TokenBudget& budget) const;
  // One line about host memory (recompute: offload); empty without.
  std::string offload_advice(const ModelConfig& config, const TokenBudget& budget, bool cuda) const;
  // One line when the rate came from the model's size or is far above it; empty otherwise.
  std::string lr_advice(const ModelConfig& config) const;

  std::unique_ptr<Loss> loss_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<TrainingLoop> loop_;
  std::unique_ptr<InputOffload> offload_;  // null: inputs of units stay on the device
};

}  // namespace sala
