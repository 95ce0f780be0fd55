// Bytes and FLOPs of a stage from configurations alone.
#include "trainer/plan.h"

#include <algorithm>

#include "model/convert.h"
#include "trainer/flops.h"
#include "trainer/recipe.h"

namespace sala {

namespace {

bool has_stage(const Recipe& recipe, const std::string& type) {
  return std::any_of(recipe.stages.begin(), recipe.stages.end(),
                     [&](const auto& stage) { return stage->type() == type; });
}

}  // namespace

ModelConfig planned_hybrid(const Recipe& recipe, const ModelConfig& source) {
  const int64_t num_kept = recipe.num_kept();
  if (num_kept == 0 && !has_stage(recipe, "align") && !has_stage(recipe, "score")) return source;
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < num_kept; ++i) {
    kept.push_back(num_kept == 1 ? 0 : i * (source.num_layers - 1) / (num_kept - 1));
  }
  return hybrid_config(source, kept, recipe.model.sparse, recipe.model.qk_norm == "keep");
}

int64_t compute_bytes(const PlanContext& context) { return context.cuda ? 2 : 4; }

double block_activation_bytes(const ModelConfig& c, int64_t bytes) {
  // x, two norm outputs, residual, mixer output, MLP output; q, k, v and their normed copies,
  // attention output, gate, gated; gate, up and their product.
  const double q = static_cast<double>(c.q_size());
  return bytes * (6.0 * c.width + 9.0 * q + 3.0 * c.ffn_width);
}

double vocabulary_workspace_bytes(const PlanContext& context) {
  // In chunks of logits (kernels/vocab_chunks.h). On a GPU: student, teacher and half as much for
  // the gradient in bf16. On a CPU (kernels/vocab_rows.cpp): logits and log-probabilities of both,
  // the cross-entropy's gradient, and the gap of the two distributions.
  return context.cuda ? 2.5 * 537e6 : 6 * 67.1e6;
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
