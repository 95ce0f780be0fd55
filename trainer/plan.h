// What stages will need, from configurations alone. Activations are an estimate: the tensors that a
// block keeps for its backward, counted one by one; the rest is exact.
#pragma once

#include "trainer/stage.h"
#include "trainer/stage_options.h"

namespace sala {

// As many sparse layers as the recipe keeps, evenly spread: which ones makes no difference here.
// Without a swap: all lightning where mixers are aligned, else the source itself (plain training).
ModelConfig planned_hybrid(const Recipe& recipe, const ModelConfig& source);

int64_t compute_bytes(const PlanContext& context);  // of one weight: 4 on CPU, 2 on CUDA
// Kept by autograd for one token of one block, in bytes.
double block_activation_bytes(const ModelConfig& config, int64_t bytes_per_value);
// Workspace of the chunked vocabulary losses.
double vocabulary_workspace_bytes(const PlanContext& context);

StagePlan plan_model_training(const PlanContext& context, const TokenBudget& budget, bool teacher,
                              bool sparse, bool recompute);
// A stage that only runs models forward: `tokens` through the source and as many through the
// hybrid.
StagePlan plan_forward(const PlanContext& context, int64_t tokens, int64_t row_length,
                       bool student);

}  // namespace sala
