// How long what is planned will take, from rates that were measured.
#pragma once

#include <string>

#include "trainer/recipe/stage_options.h"
#include "trainer/stage.h"

namespace sala {

// The share of a GPU's dense bf16 peak that a stage of this type reaches, of all FLOPs it executes,
// recomputed ones too: measured on H200s at three widths (README, "What is measured"), between them
// by interpolation over the width's logarithm.
double measured_share(const std::string& stage_type, int64_t width);

// Bytes that a rank receives in one step: weights and gradients as run.sharding has them travel,
// keys, values and states of split sequences. `teacher`: also the source's weights.
struct Traffic {
  const TokenBudget& budget;
  int64_t context = 1;
  bool teacher = false;
};
void plan_traffic(const PlanContext& context, const Traffic& traffic, StagePlan& plan);
// Of alignment: the teacher's weights, and the mixers'.
void plan_align_traffic(const PlanContext& context, const Traffic& traffic, StagePlan& plan);

// Assumed, not measured: of the dense bf16 peak, what products in fp32 reach, which tensor cores do
// not take (datasheets of H100 and H200: 67 of 989 TFLOP/s; three quarters of that).
inline constexpr double kFp32Share = 0.05;
// Assumed, not measured: GPUs of a node, what NVLink carries for each in NCCL's collectives, and
// one 400 Gb/s port for each; bytes a second.
inline constexpr int64_t kNodeRanks = 8;
inline constexpr double kNodeRate = 200e9, kNetworkRate = 40e9;

// Of the whole stage: the longer one of computing and sending, which overlap.
double stage_seconds(const PlanContext& context, const std::string& stage_type,
                     const StagePlan& plan, double peak_flops);
// One line where rows do not divide among ranks and that takes more than 2 % of the stage's time,
// with the nearest batch_tokens that would; else empty.
std::string uneven_rows_advice(const PlanContext& context, const std::string& stage_type,
                               const std::string& stage_name, const StagePlan& plan,
                               double peak_flops);
// Whether sending is the longer one.
bool network_bound(const PlanContext& context, const std::string& stage_type, const StagePlan& plan,
                   double peak_flops);

}  // namespace sala
