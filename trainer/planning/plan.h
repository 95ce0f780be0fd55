// What stages will need, from configurations alone, by the descriptions that the allocation is made
// from: parameters by Parameters::planned_bytes, what blocks keep by model/kept_tensors.h. What
// passes hold for a moment is an upper estimate.
#pragma once

#include "model/kept_tensors.h"
#include "trainer/parameters.h"
#include "trainer/recipe/stage_options.h"
#include "trainer/stage.h"

namespace sala {

int64_t compute_bytes(const PlanContext& context);  // of one weight: 4 on CPU, 2 on CUDA
// That share out one copy of a model (run.shard_ranks).
int64_t shard_ranks(const PlanContext& context);
// How a recipe holds parameters: what the allocation is made from too (Parameters, Run).
Parameters::Options holding(const Recipe& recipe, at::ScalarType dtype, at::Device device,
                            bool trains);

// Of one model on the rank that holds most, in bytes: as Parameters and Optimizer will allocate.
struct PlannedParameters {
  double weights = 0;    // compute copies, and buffers for what is gathered
  double gradients = 0;  // with buffers for what is reduced
  double optimizer = 0;  // masters and moments
};
PlannedParameters plan_parameters(const PlanContext& context, const ModelConfig& model,
                                  bool trains);
// Of the mixers in alignment.
PlannedParameters plan_aligned(const PlanContext& context);

// What a device gives for activations of that many bytes: on a GPU LibTorch's allocator keeps gaps
// between tensors, and cuBLAS its workspaces (fitted to nine stages measured on H200s: within 3 %).
double taken_for_activations(const PlanContext& context, double bytes);

// Workspace of the chunked vocabulary losses.
double vocabulary_workspace_bytes(const PlanContext& context);

// Of the rows in flight and the documents that are open side by side. `sharing`: ranks that hold a
// row together, each all of it.
double batch_bytes(const PlanContext& context, const TokenBudget& budget, int64_t sharing);

// The hybrid of a recipe with as many sparse layers as it keeps, evenly spread: which ones makes no
// difference to a plan. Without a swap: all lightning where mixers are aligned, else the source
// itself (plain training). Of a recipe that begins with a checkpoint's model: that one.
ModelConfig planned_hybrid(const Recipe& recipe, const ModelConfig& source);

// One line for a device whose memory was not enough: what the stage was planned with, and what
// would need less and by how much. `what`: the allocator's own message.
std::string out_of_memory_text(const Stage& stage, const StagePlan& plan, double device_bytes,
                               const std::string& what);

// What a run writes: checkpoints between stages, which are all kept, those inside the stage that
// needs most; and what its stages do, from number `first` on.
std::vector<DiskNeed> plan_checkpoints(const PlanContext& context);
std::vector<DiskNeed> plan_stage_writes(const PlanContext& context, int64_t first);

// How a stage trains the whole model.
struct TrainingPlan {
  bool teacher = false;  // distils
  bool sparse = true;
  Recompute recompute = Recompute::kNone;
  bool offloads = false;  // inputs of units wait in host memory
  int64_t context = 1;
  Matmul matmul = {};
  bool teaches_selection = false;
  bool evaluates = false;  // on its way, by the recipe's first evaluate stage
};
StagePlan plan_model_training(const PlanContext& context, const TokenBudget& budget,
                              const TrainingPlan& training);
// A stage that only runs models forward: `tokens` through the source and as many through the
// hybrid, in rows of `row_length` tokens on a rank.
StagePlan plan_forward(const PlanContext& context, int64_t tokens, int64_t row_length,
                       bool student);
// Passes of an evaluation, beside the model's parameters: rows, and keys and values of the prompts
// that are answered together, with their prefill.
struct EvaluateOptions;
double evaluation_moment_bytes(const PlanContext& context, const EvaluateOptions& options);

}  // namespace sala
