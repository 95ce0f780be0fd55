// What stages will need, from configurations alone. Activations are an estimate: the tensors that a
// block keeps for its backward, counted one by one; the rest is exact.
#pragma once

#include "trainer/recipe/stage_options.h"
#include "trainer/stage.h"

namespace sala {

int64_t compute_bytes(const PlanContext& context);  // of one weight: 4 on CPU, 2 on CUDA
// Kept by autograd for one token of one block, in bytes.
double block_activation_bytes(const ModelConfig& config, int64_t bytes_per_value);
// Workspace of the chunked vocabulary losses.
double vocabulary_workspace_bytes(const PlanContext& context);

// Of the rows in flight and the documents that are open side by side.
double batch_bytes(const PlanContext& context, const TokenBudget& budget);

// The hybrid of a recipe with as many sparse layers as it keeps, evenly spread: which ones makes no
// difference to a plan. Without a swap: all lightning where mixers are aligned, else the source
// itself (plain training).
ModelConfig planned_hybrid(const Recipe& recipe, const ModelConfig& source);

// What a run writes, in bytes.
struct DiskPlan {
  double boundaries = 0;  // checkpoints between stages, which are all kept
  double inside = 0;      // those inside the stage that needs most
  double exported = 0;
  double all() const { return boundaries + inside + exported; }
};
DiskPlan plan_disk(const PlanContext& context);

StagePlan plan_model_training(const PlanContext& context, const TokenBudget& budget, bool teacher,
                              bool sparse, bool recompute);
// A stage that only runs models forward: `tokens` through the source and as many through the
// hybrid.
StagePlan plan_forward(const PlanContext& context, int64_t tokens, int64_t row_length,
                       bool student);

}  // namespace sala
