// Bytes and FLOPs of a stage from configurations alone.
#include "trainer/plan.h"

#include <algorithm>
#include <cmath>

#include "model/convert.h"
#include "trainer/flops.h"
#include "trainer/recipe/recipe.h"

namespace sala {

int64_t compute_bytes(const PlanContext& context) { return context.cuda ? 2 : 4; }

double block_activation_bytes(const ModelConfig& c, int64_t bytes) {
  // x, two norm outputs, residual, mixer output, MLP output; q, k, v and their normed copies,
  // attention output, gate, gated; gate, up and their product.
  const double q = static_cast<double>(c.q_size());
  return bytes * (6.0 * c.width + 9.0 * q + 3.0 * c.ffn_width);
}

double vocabulary_workspace_bytes(const PlanContext& context) {
  // In chunks of logits (kernels/vocabulary/chunks.h). On a GPU: student, teacher and half as much for
  // the gradient in bf16. On a CPU (kernels/vocabulary/rows.cpp): logits and log-probabilities of both,
  // the cross-entropy's gradient, and the gap of the two distributions.
  return context.cuda ? 2.5 * 537e6 : 6 * 67.1e6;
}

double batch_bytes(const PlanContext& context, const TokenBudget& budget) {
  // data/loader.h: the step at work, the one being read and two in the queue. Every rank plans all
  // rows and reads its own: 16 bytes a token, which the device holds a second time in 28.
  constexpr double kSteps = 4, kPlanBytes = 100, kLaneBytes = 1000;
  const double rows = static_cast<double>(budget.rows_per_step());
  const double own_rows = std::ceil(rows / static_cast<double>(context.num_ranks));
  const double own_tokens = own_rows * static_cast<double>(budget.row_length);
  const double lanes = static_cast<double>(context.recipe.data.lanes);
  return kSteps * (rows * kPlanBytes + own_tokens * 16) + own_tokens * 28 + lanes * kLaneBytes;
}

ModelConfig planned_hybrid(const Recipe& recipe, const ModelConfig& source) {
  const int64_t num_kept = std::min(recipe.num_kept(), source.num_layers);
  const bool converts =
      num_kept > 0 ||
      std::any_of(recipe.stages.begin(), recipe.stages.end(), [](const auto& stage) {
        return stage->type() == "align" || stage->type() == "score";
      });
  if (!converts || source.is_hybrid()) return source;
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < num_kept; ++i) {
    kept.push_back(num_kept == 1 ? 0 : i * (source.num_layers - 1) / (num_kept - 1));
  }
  return hybrid_config(source, kept, recipe.model.sparse, recipe.model.qk_norm == "keep");
}

DiskPlan plan_disk(const PlanContext& context) {
  // A stage boundary holds the weights alone (the mixers before the swap); inside a stage the
  // optimizer's state comes with them, for the newest few.
  const Recipe& recipe = context.recipe;
  const double hybrid_bytes = 4.0 * static_cast<double>(num_parameters(context.hybrid));
  const double mixer_bytes =
      4.0 * static_cast<double>(mixer_parameters(context.hybrid, Mixer::kLightning) *
                                context.source.num_layers);
  DiskPlan disk;
  bool aligned = false, swapped = false;
  for (const auto& stage : recipe.stages) {
    if (!recipe.problems.clean(stage->path)) continue;
    const std::string type = stage->type();
    aligned = aligned || type == "align";
    swapped = swapped || type == "swap" || type == "train";
    if (swapped || aligned) disk.boundaries += swapped ? hybrid_bytes : mixer_bytes;
    if (type == "export") disk.exported += hybrid_bytes / 2;
    if (stage->save_every > 0) {
      disk.inside = std::max(disk.inside, stage->plan(context).checkpoint_bytes);
    }
  }
  // One more than is kept: the old one goes when the new one is whole.
  disk.inside *= static_cast<double>(recipe.run.keep_checkpoints + 1);
  return disk;
}

StagePlan plan_model_training(const PlanContext& context, const TokenBudget& budget, bool teacher,
                              bool sparse, bool recompute) {
  const ModelConfig& student = context.hybrid;
  const double student_parameters = static_cast<double>(num_parameters(student));
  const double source_parameters = static_cast<double>(num_parameters(context.source));
  const int64_t bytes = compute_bytes(context);
  const double micro_tokens = static_cast<double>(budget.micro_rows() * budget.row_length);
  StagePlan plan;
  plan.tokens = budget.num_steps() * budget.batch_tokens;
  plan.steps = budget.num_steps();
  plan.weights_bytes = bytes * (student_parameters + (teacher ? source_parameters : 0));
  plan.gradient_bytes = 4 * student_parameters;
  plan.optimizer_bytes = (context.cuda ? 12 : 8) * student_parameters;
  const double per_block = block_activation_bytes(student, bytes);
  const double kept = recompute ? student.num_layers * bytes * student.width + per_block
                                : student.num_layers * per_block;
  plan.activation_bytes = micro_tokens * kept + vocabulary_workspace_bytes(context);
  plan.flops = 3.0 * forward_flops(student, budget.row_length, sparse);
  if (recompute) plan.flops += forward_flops(student, budget.row_length, sparse);
  if (teacher) plan.flops += forward_flops(context.source, budget.row_length, false);
  plan.flops *= static_cast<double>(plan.tokens);
  plan.checkpoint_bytes = 12 * student_parameters;
  plan.batch_bytes = batch_bytes(context, budget);
  return plan;
}

StagePlan plan_forward(const PlanContext& context, int64_t tokens, int64_t row_length,
                       bool student) {
  const int64_t bytes = compute_bytes(context);
  StagePlan plan;
  plan.tokens = tokens;
  plan.weights_bytes = bytes * static_cast<double>(num_parameters(context.source));
  plan.flops = forward_flops(context.source, row_length, false);
  if (student) {
    plan.weights_bytes += bytes * static_cast<double>(num_parameters(context.hybrid));
    plan.optimizer_bytes = context.cuda ? 4.0 * num_parameters(context.hybrid) : 0;  // masters
    plan.flops += forward_flops(context.hybrid, row_length, true);
    plan.checkpoint_bytes = 4.0 * num_parameters(context.hybrid);
  }
  plan.flops *= static_cast<double>(tokens);
  plan.activation_bytes = 3.0 * row_length * block_activation_bytes(context.hybrid, bytes) +
                          vocabulary_workspace_bytes(context);
  return plan;
}

}  // namespace sala
