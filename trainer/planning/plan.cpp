// Bytes and FLOPs of a stage from configurations alone.
#include "trainer/planning/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "model/convert.h"
#include "model/generate.h"
#include "model/weights/parts.h"
#include "trainer/evaluation/tasks.h"
#include "trainer/network.h"
#include "trainer/optimizer.h"
#include "trainer/planning/flops.h"
#include "trainer/planning/speed.h"
#include "trainer/recipe/recipe.h"

namespace sala {

int64_t compute_bytes(const PlanContext& context) { return context.cuda ? 2 : 4; }

int64_t shard_ranks(const PlanContext& context) {
  const int64_t wanted = context.recipe.run.shard_ranks;
  return wanted == 0 ? context.num_ranks : std::min(wanted, context.num_ranks);
}

Parameters::Options holding(const Recipe& recipe, at::ScalarType dtype, at::Device device,
                            bool trains) {
  Parameters::Options options;
  options.dtype = dtype;
  options.device = device;
  options.sharding = recipe.run.sharding == "zero3"   ? Sharding::kZero3
                     : recipe.run.sharding == "zero1" ? Sharding::kZero1
                                                      : Sharding::kNone;
  options.trains = trains;
  return options;
}

namespace {

PlannedParameters planned(const PlanContext& context, const std::vector<LayoutPtr>& layouts,
                          const Parameters::Options& options) {
  const std::vector<bool> trained(layouts.size(), options.trains);
  const auto ranks = static_cast<int>(shard_ranks(context));
  const Parameters::Bytes bytes = Parameters::planned_bytes(layouts, options, ranks, trained);
  PlannedParameters planned;
  planned.weights = static_cast<double>(bytes.copies + bytes.buffers);
  planned.gradients = static_cast<double>(bytes.gradients);
  planned.optimizer = static_cast<double>(bytes.masters);
  if (options.trains) {
    planned.optimizer +=
        static_cast<double>(Optimizer::planned_bytes(layouts, options, ranks, trained));
  }
  return planned;
}

Parameters::Options options_of(const PlanContext& context, bool trains) {
  return holding(context.recipe, context.cuda ? at::kBFloat16 : at::kFloat, at::kCPU, trains);
}

// Keys and values of a whole line, which the ranks that share it gather.
double gathered_bytes(const ModelConfig& c, int64_t line, int64_t bytes) {
  return static_cast<double>(line * c.num_kv_heads * c.head_size * 2 * bytes);
}

}  // namespace

PlannedParameters plan_parameters(const PlanContext& context, const ModelConfig& config,
                                  bool trains) {
  const Model model(config);
  return planned(context, model.layouts(), Network::with_units(options_of(context, trains), model));
}

PlannedParameters plan_aligned(const PlanContext& context) {
  std::vector<LayoutPtr> layouts;
  for (const Layout& layout : aligned_layouts(context.hybrid)) {
    layouts.push_back(std::make_shared<const Layout>(layout));
  }
  return planned(context, layouts, options_of(context, true));
}

double taken_for_activations(const PlanContext& context, double bytes) {
  return context.cuda ? 1.05 * bytes + 0.4e9 : bytes;
}

double vocabulary_workspace_bytes(const PlanContext& context) {
  // In chunks of logits (kernels/vocabulary/chunks.h). On a GPU: student, teacher and half as much
  // for the gradient in bf16. On a CPU (kernels/vocabulary/rows.cpp): logits and log-probabilities
  // of both, the cross-entropy's gradient, and the gap of the two distributions.
  return context.cuda ? 2.5 * 537e6 : 6 * 67.1e6;
}

double batch_bytes(const PlanContext& context, const TokenBudget& budget, int64_t sharing) {
  // data/loader.h: the step at work, the one being read and two in the queue. Every rank plans all
  // rows and reads its own: 16 bytes a token, which the device holds a second time in 28.
  constexpr double kSteps = 4, kPlanBytes = 100, kLaneBytes = 1000;
  const double rows = static_cast<double>(budget.rows_per_step());
  const double own_rows =
      std::ceil(rows * static_cast<double>(sharing) / static_cast<double>(context.num_ranks));
  const double own_tokens = own_rows * static_cast<double>(budget.row_length);
  const double lanes = static_cast<double>(context.recipe.data.lanes);
  return kSteps * (rows * kPlanBytes + own_tokens * 16) + own_tokens * 28 + lanes * kLaneBytes;
}

namespace {

// With layers that are known already, from the checkpoint that the recipe begins with.
ModelConfig hybrid_of_checkpoint(const Recipe& recipe, const ModelConfig& source) {
  const Beginning& begin = recipe.begin;
  if (!begin.hybrid || source.is_hybrid()) return source;
  if (!begin.kept.empty() && begin.kept.back() >= source.num_layers) {
    throw std::runtime_error(fmt::format(
        "{} keeps softmax attention in layer {}, but the last of {} is {}: it is of another source",
        begin.checkpoint, begin.kept.back(), recipe.source, source.num_layers - 1));
  }
  return hybrid_config(source, begin.kept, recipe.model.sparse, recipe.model.qk_norm == "keep");
}

}  // namespace

ModelConfig planned_hybrid(const Recipe& recipe, const ModelConfig& source) {
  if (recipe.begin.model) return hybrid_of_checkpoint(recipe, source);
  const int64_t num_kept = std::min(recipe.num_kept(), source.num_layers);
  const bool converts =
      num_kept > 0 || recipe.begin.mixers ||
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

std::string out_of_memory_text(const Stage& stage, const StagePlan& plan, double device_bytes,
                               const std::string& what) {
  const auto gb = [](double bytes) { return fmt::format("{:.1f} GB", bytes / 1e9); };
  return fmt::format(
      "stage {} step {}: the device's memory is not enough. Planned were {} of {}: weights {}, "
      "gradients {}, masters and moments {}, activations {}. Half the micro_tokens would save "
      "about "
      "{}; recompute: selective, full or offload and a larger context cut activations too; "
      "run.sharding: "
      "zero1 or zero3 on more ranks the rest. The same command then goes on from the newest "
      "checkpoint. ({})",
      stage.name, stage.step(), gb(plan.memory_bytes()), gb(device_bytes), gb(plan.weights_bytes),
      gb(plan.gradient_bytes), gb(plan.optimizer_bytes), gb(plan.activation_bytes),
      gb(plan.activation_bytes / 2), what.substr(0, what.find('\n')));
}

std::vector<DiskNeed> plan_checkpoints(const PlanContext& context) {
  // A stage boundary holds the weights alone (the mixers before the swap); inside a stage the
  // optimizer's state comes with them, for the newest few.
  const Recipe& recipe = context.recipe;
  const double hybrid_bytes = 4.0 * static_cast<double>(num_parameters(context.hybrid));
  const double mixer_bytes =
      4.0 * static_cast<double>(mixer_parameters(context.hybrid, Mixer::kLightning) *
                                context.source.num_layers);
  double between = 0, inside = 0;
  bool aligned = recipe.begin.mixers, swapped = recipe.begin.model;
  for (size_t s = static_cast<size_t>(recipe.begin.stage); s < recipe.stages.size(); ++s) {
    const auto& stage = recipe.stages[s];
    if (!recipe.problems.clean(stage->path)) continue;
    const std::string type = stage->type();
    aligned = aligned || type == "align";
    swapped = swapped || type == "swap" || type == "train" || type == "sft";
    if (swapped || aligned) between += swapped ? hybrid_bytes : mixer_bytes;
    if (stage->save_every > 0) inside = std::max(inside, stage->plan(context).checkpoint_bytes);
  }
  // One more than is kept: the old one goes when the new one is whole.
  inside *= static_cast<double>(recipe.run.keep_checkpoints + 1);
  const std::string& folder = recipe.run.folder;
  return {{"run.folder", folder, "checkpoints between stages", between},
          {"run.folder", folder, "checkpoints inside stages", inside}};
}

std::vector<DiskNeed> plan_stage_writes(const PlanContext& context, int64_t first) {
  const Recipe& recipe = context.recipe;
  std::vector<DiskNeed> needs;
  for (auto s = static_cast<size_t>(first); s < recipe.stages.size(); ++s) {
    if (!recipe.problems.clean(recipe.stages[s]->path)) continue;
    const StagePlan plan = recipe.stages[s]->plan(context);
    needs.insert(needs.end(), plan.writes.begin(), plan.writes.end());
  }
  return needs;
}

StagePlan plan_model_training(const PlanContext& context, const TokenBudget& budget,
                              const TrainingPlan& training) {
  const ModelConfig& student = context.hybrid;
  const int64_t length = budget.row_length;
  StagePlan plan;
  plan.tokens = budget.num_steps() * budget.batch_tokens;
  plan.steps = budget.num_steps();
  const PlannedParameters own = plan_parameters(context, student, true);
  plan.weights_bytes = own.weights;
  plan.gradient_bytes = own.gradients;
  plan.optimizer_bytes = own.optimizer;
  // An evaluation on the way may need the teacher for its KL, beside all of this.
  const EvaluateOptions* options = training.evaluates ? evaluate_options(context.recipe) : nullptr;
  if (training.teacher || (options && options->kl)) {
    plan.weights_bytes += plan_parameters(context, context.source, false).weights;
  }
  const int64_t tokens = budget.tokens_at_once(training.context);
  const PassShape shape{tokens, compute_bytes(context),
                        training.sparse && length >= student.sparse.dense_len};
  double kept = 0, moment = 0;
  for (Mixer mixer : student.mixers) {
    auto at_work = static_cast<double>(
        backward_moment_bytes(student, mixer, shape, training.recompute) +
        fp8_moment_bytes(student, mixer, shape, training.recompute, training.matmul));
    // Keys and values of the whole line, and their gradient.
    if (training.context > 1 && mixer != Mixer::kLightning) {
      at_work += 2 * gathered_bytes(student, budget.micro_rows() * length, shape.value_bytes);
    }
    kept += static_cast<double>(kept_bytes(student, mixer, shape, training.recompute));
    moment = std::max(moment, at_work);
  }
  if (training.offloads) {  // two inputs stay: of the block at work and of the next
    const int64_t input = tokens * student.width * shape.value_bytes;
    kept -= static_cast<double>((student.num_layers - 2) * input);
  }
  // At the head: the normed features, their gradient, the teacher's features.
  const double head = vocabulary_workspace_bytes(context) +
                      4.0 * static_cast<double>(tokens * student.width * shape.value_bytes);
  if (training.teaches_selection) {
    const int64_t keys = training.context > 1 ? budget.micro_rows() * length : tokens;
    moment +=
        static_cast<double>(selection_moment_bytes(student, tokens, keys, length, context.cuda));
  }
  plan.activation_bytes = kept + std::max(moment, head);
  if (options) {
    plan.activation_bytes =
        std::max(plan.activation_bytes, evaluation_moment_bytes(context, *options));
  }
  plan.activation_bytes = taken_for_activations(context, plan.activation_bytes);
  plan.flops = 3.0 * forward_flops(student, length, training.sparse);
  if (training.recompute == Recompute::kFull) {
    plan.flops += forward_flops(student, length, training.sparse);
  }
  if (training.teacher) plan.flops += forward_flops(context.source, length, false);
  if (training.teaches_selection) plan.fp32_flops = selection_loss_flops(student, length);
  plan.flops += plan.fp32_flops;
  plan.flops *= static_cast<double>(plan.tokens);
  plan.fp32_flops *= static_cast<double>(plan.tokens);
  plan.checkpoint_bytes = 12.0 * static_cast<double>(num_parameters(student));
  plan.batch_bytes = batch_bytes(context, budget, training.context);
  plan_traffic(context, {budget, training.context, training.teacher}, plan);
  return plan;
}

double evaluation_moment_bytes(const PlanContext& context, const EvaluateOptions& options) {
  const ModelConfig& c = context.hybrid;
  const int64_t bytes = compute_bytes(context);
  const auto pass = [&](int64_t tokens) {
    double most = 0;
    for (Mixer mixer : c.mixers) {
      const PassShape shape{tokens, bytes, true};
      most = std::max(most, static_cast<double>(forward_moment_bytes(c, mixer, shape)));
    }
    return most + 3.0 * static_cast<double>(tokens * c.width * bytes);
  };
  const int64_t choice = options.choices.empty() ? 0 : context.longest_choice;
  const int64_t line = std::max({options.row_length, kEvaluationTokens, choice});
  double rows = pass(line / options.context) + vocabulary_workspace_bytes(context);
  if (options.context > 1) rows += gathered_bytes(c, line, bytes);
  // Ranks answer prompts of different lengths, each with all weights (Parameters::held).
  const bool sharded = context.recipe.run.sharding == "zero3" && context.num_ranks > 1;
  const double held = sharded ? static_cast<double>(bytes * num_parameters(c)) : 0;
  std::vector<int64_t> lengths = options.needle_lengths;  // of prompts
  if (!options.tasks.empty()) {
    for (int64_t length : chosen_lengths(options, context.task_lengths)) {
      // Several are answered together, as far as the device has room (generation_cache_bytes).
      lengths.push_back(std::max(length, tokens_answered_at_once(/*on_gpu=*/false)));
    }
  }
  double prompts = 0;
  for (int64_t length : lengths) {
    double cached = 0;
    for (Mixer mixer : c.mixers) {
      if (mixer != Mixer::kLightning) cached += 2.0 * static_cast<double>(c.kv_size(mixer) * bytes);
    }
    const GenerateOptions generate;
    prompts = std::max(prompts, held + 1.5 * cached * static_cast<double>(length) +
                                    // Short prompts fill a chunk together.
                                    pass(context.cuda ? generate.prefill_chunk
                                                      : std::min(length, generate.prefill_chunk)));
  }
  return std::max(rows, prompts);
}

StagePlan plan_forward(const PlanContext& context, int64_t tokens, int64_t row_length,
                       bool student) {
  StagePlan plan;
  plan.tokens = tokens;
  plan.weights_bytes = plan_parameters(context, context.source, false).weights;
  plan.flops = forward_flops(context.source, row_length, false);
  if (student) {
    const PlannedParameters own = plan_parameters(context, context.hybrid, true);
    plan.weights_bytes += own.weights;
    // Masters are there, moments and gradients are not.
    plan.optimizer_bytes = own.optimizer / 3;
    plan.flops += forward_flops(context.hybrid, row_length, true);
    plan.checkpoint_bytes = 4.0 * static_cast<double>(num_parameters(context.hybrid));
  }
  plan.flops *= static_cast<double>(tokens);
  const PassShape shape{row_length, compute_bytes(context), true};
  plan.activation_bytes =
      static_cast<double>(forward_moment_bytes(context.source, context.source.mixers[0], shape)) +
      3.0 * static_cast<double>(row_length * context.source.width * shape.value_bytes) +
      vocabulary_workspace_bytes(context);
  return plan;
}

}  // namespace sala
