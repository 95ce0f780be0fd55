// What distill, train and sft share: student, optimizer, loop, one step at a time.
#include "trainer/stages/model_training.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/fp8.h"
#include "model/feed_forward.h"
#include "model/weights/parts.h"
#include "trainer/planning/flops.h"
#include "trainer/planning/matmul.h"
#include "trainer/planning/plan.h"
#include "trainer/ranks/device_info.h"
#include "trainer/recipe/amount_text.h"

namespace sala {

namespace {

// Takes the sums of the selection loss off the end of a step's losses: their means over queries and
// layers, for metrics.jsonl.
nlohmann::json take_selection(std::vector<double>& losses) {
  const double* sums = losses.data() + losses.size() - kNumSelectionSums;
  nlohmann::json line = nlohmann::json::object();
  if (const double count = sums[kSelectionCount]; count > 0) {
    line["selection_loss"] = sums[kSelectionLoss] / count;
  }
  if (const double count = sums[kSelectionChoices]; count > 0) {
    line["selection_missed"] = sums[kSelectionMissed] / count;
  }
  losses.resize(losses.size() - kNumSelectionSums);
  return line;
}

}  // namespace

void ModelTraining::describe(Fields& fields) {
  budget_.describe(fields);
  optimizer_options_.describe(fields, Need::kOptional);
  loop_options_.describe(fields, *this);
  loop_options_.describe_model(fields);
  fields.number(
      "selection_weight", selection_weight_, Need::kOptional,
      "Weight of a loss that teaches the sparse layers' choice of blocks: where what full "
      "attention looks at stands too low in their order, at every 31st token, also in "
      "dense stages. 0 = none, 10 to 40 work well. A model that was never sparse chooses "
      "little better than chance without it.");
  fields.choice("on_spike", on_spike_, {"warn", "skip", "stop"}, Need::kOptional,
                "When the loss or gradient norm of a step is more than twice the median of the "
                "last 64 steps and ten times their median absolute deviation above it: say so; "
                "skip the step, which counts for max_skips; or stop the run before it changes "
                "anything.");
}

void ModelTraining::check(const Recipe& recipe, const std::string& path, Problems& problems) const {
  const bool usable = budget_.check(path, recipe, problems);
  optimizer_options_.check(path, usable ? budget_.num_steps() : 0, problems);
  if (selection_weight_ < 0) {
    problems.add(path + ".selection_weight",
                 fmt::format("must be 0 or more, but is {}", selection_weight_));
  }
}

void ModelTraining::check_inputs(const StageInputs& inputs, Problems& problems) {
  if (inputs.context) {
    check_context(path, loop_options_.context, budget_.row_length, problems);
    check_optimizer(inputs.context->hybrid, problems);
    const at::Device gpu(at::kCUDA, 0);
    if (loop_options_.matmul_rule().fp8_from > 0 && inputs.context->cuda && num_gpus() > 0 &&
        !has_fp8_cores(gpu)) {
      problems.add(path + ".matmul",
                   fmt::format("{} needs a GPU of compute capability 8.9 or higher (H100, H200), "
                               "but this one is {}: use bf16",
                               loop_options_.matmul, device_name(gpu)));
    }
  }
  for (const auto& [source, weight] : budget_.data) {
    const auto found = inputs.sources.find(source);
    if (found == inputs.sources.end() || found->second.has_target()) continue;
    problems.add(path + ".data." + source,
                 "no token of it counts as a target, so nothing can be learned from it; look at "
                 "its loss_mask");
  }
}

// Which layers are kept may not be known yet: a name counts where any choice has it.
void ModelTraining::check_optimizer(const ModelConfig& config, Problems& problems) const {
  std::vector<Layout> layouts = model_layouts(config);
  if (config.is_hybrid()) {
    for (int64_t l = 0; l < config.num_layers; ++l) {
      layouts.push_back(mixer_layout(config, l, Mixer::kLightning));
      layouts.push_back(mixer_layout(config, l, Mixer::kSparse));
    }
  }
  optimizer_options_.check_names(path, layouts, problems);
  optimizer_options(config).check_trains(path, layouts, problems);
  const double peak = peak_lr(config), end = optimizer_options_.schedule.end_lr;
  if (end > peak) {
    problems.add(path + ".end_lr", fmt::format("{} is above lr, {:.2g} by the model's size: "
                                               "schedules only go down; name lr too",
                                               end, peak));
  }
}

StagePlan ModelTraining::plan(const PlanContext& context) const {
  TrainingPlan training;
  training.teacher = needs_teacher();
  training.sparse = loop_options_.attention == "sparse";
  training.recompute = loop_options_.recompute_level();
  training.offloads = loop_options_.offloads() && context.cuda;
  training.context = loop_options_.context;
  training.matmul = loop_options_.matmul_rule();
  training.teaches_selection = selection_weight_ > 0;
  training.evaluates = evaluate_every > 0;
  const TokenBudget budget = suited_budget(context);
  StagePlan plan = plan_model_training(context, budget, training);
  plan.advice = lr_advice(context.hybrid);
  for (const std::string& advice :
       {micro_batch_advice(budget), matmul_advice(context.hybrid, budget),
        selection_advice(context.hybrid), offload_advice(context.hybrid, budget, context.cuda)}) {
    if (!advice.empty()) plan.advice += (plan.advice.empty() ? "" : "\n") + advice;
  }
  return plan;
}

void ModelTraining::begin(Run& run) {
  if (!run.student) start_from_source(run);
  if (!needs_teacher()) run.drop_teacher();
  loss_ = make_loss(run);
  const ModelConfig config = run.student->model.config();
  const OptimizerOptions optimizer = optimizer_options(config);
  const bool cuda = run.world.device().is_cuda();
  const TokenBudget budget =
      budget_.suited_to(config.width, roomy_gpus(cuda), run.world.size() / loop_options_.context);
  for (const std::string& advice :
       {lr_advice(config), micro_batch_advice(budget), matmul_advice(config, budget),
        selection_advice(config), offload_advice(config, budget, cuda)}) {
    if (!advice.empty()) run.metrics.note(advice);
  }
  if (loop_options_.offloads() && cuda) {
    free_cached_host_memory();  // the inputs of a stage before, say: of all ranks of a node
    run.world.barrier();
    run.world.together("stage " + name, [&] { check_host_memory(run, budget); });
    offload_ = std::make_unique<InputOffload>(run.world.device());
  }
  optimizer_ = std::make_unique<Optimizer>(run.student->parameters, optimizer);
  const bool sparse = loop_options_.attention == "sparse";
  const ModelConfig teacher = run.source;
  const bool distils = needs_teacher();
  auto flops_per_token = [=](int64_t length) {
    const double teaching = distils ? forward_flops(teacher, length, false) : 0;
    return 3 * forward_flops(config, length, sparse) + teaching;
  };
  loop_ = std::make_unique<TrainingLoop>(run, *this, budget, optimizer, loop_options_,
                                         flops_per_token, on_spike_);
  run.student->parameters.set_clock(&loop_->clock());
  if (needs_teacher()) run.teacher().parameters.set_clock(&loop_->clock());
}

// Continual training of the source itself, whose own values the masters take.
void ModelTraining::start_from_source(Run& run) {
  run.make_student(run.source);
  Parameters& parameters = run.student->parameters;
  run.read_source(
      run.student->model.layouts(), [](size_t) { return true; },
      [&](size_t p, Weights& part) { parameters.set_whole(p, part.flat); });
}

OptimizerOptions ModelTraining::optimizer_options(const ModelConfig& config) const {
  OptimizerOptions options = optimizer_options_;
  options.schedule.lr = peak_lr(config);
  return options;
}

double ModelTraining::peak_lr(const ModelConfig& config) const {
  const double lr = optimizer_options_.schedule.lr;
  return lr > 0 ? lr : safe_lr(num_parameters(config));
}

std::string ModelTraining::lr_advice(const ModelConfig& config) const {
  constexpr double kFar = 3;  // times the safe rate: rates of recipes that work reach about twice
  const double lr = optimizer_options_.schedule.lr, safe = safe_lr(num_parameters(config));
  const std::string size = amount_text(static_cast<double>(num_parameters(config)));
  if (lr == 0) return fmt::format("stage {}: lr {:.2g}, by its {} parameters", name, safe, size);
  if (lr <= kFar * safe) return "";
  return fmt::format(
      "warning: stage {}: lr {:.2g} is {:.0f} times what HALO's table gives for {} parameters "
      "({:.2g}); such rates have destroyed pretrained models: look at the first losses",
      name, lr, lr / safe, size, safe);
}

std::string ModelTraining::selection_advice(const ModelConfig& config) const {
  if (selection_weight_ == 0) return "";
  const std::string nothing =
      fmt::format("warning: stage {}: selection_weight teaches nothing: ", name);
  if (!std::ranges::count(config.mixers, Mixer::kSparse)) {
    return nothing + "the model has no sparse layers";
  }
  const int64_t first = first_taught_position(config.sparse, SelectionLossOptions{}.query_stride);
  if (first < budget_.row_length) return "";
  return nothing + fmt::format(
                       "the first query with two blocks to put in order is number {} of a "
                       "document, and rows have {} tokens; use longer rows, or a smaller "
                       "model.sparse.block_size",
                       first + 1, budget_.row_length);
}

SelectionLossOptions ModelTraining::selection(const ModelConfig& config) const {
  SelectionLossOptions options;
  const auto layers = std::count(config.mixers.begin(), config.mixers.end(), Mixer::kSparse);
  if (layers == 0) return options;
  // The mean over layers and, as every stride-th token stands for its neighbours, over the step's
  // tokens.
  options.weight = selection_weight_ * static_cast<double>(options.query_stride) /
                   static_cast<double>(layers * budget_.batch_tokens);
  return options;
}

std::string ModelTraining::matmul_advice(const ModelConfig& config,
                                         const TokenBudget& budget) const {
  const int64_t tokens = budget.tokens_at_once(loop_options_.context);
  const bool keeps = loop_options_.recompute_level() != Recompute::kFull;
  const std::string text =
      matmul_text(config, tokens, loop_options_.matmul_rule(), feed_forward_tokens(tokens, keeps));
  return text.empty() ? "" : fmt::format("stage {}: {}", name, text);
}

TokenBudget ModelTraining::suited_budget(const PlanContext& context) const {
  return budget_.suited_to(context.hybrid.width, roomy_gpus(context.cuda),
                           context.num_ranks / loop_options_.context);
}

std::string ModelTraining::micro_batch_advice(const TokenBudget& budget) const {
  // Of one row there is nothing to choose, however long it is.
  const bool larger = budget.default_micro_tokens > TokenBudget{}.default_micro_tokens;
  if (budget.micro_tokens > 0 || !larger || budget.micro_rows() == 1) return "";
  return fmt::format(
      "stage {}: a rank runs {} tokens at once, as the model is narrow: "
      "micro_tokens says otherwise where memory is short",
      name, budget.micro_rows() * budget.row_length);
}

namespace {

// Of one rank, for inputs of blocks (recompute: offload).
double offloaded_bytes(const ModelConfig& config, int64_t tokens) {
  return 2.0 * static_cast<double>(config.num_layers * config.width * tokens);
}

}  // namespace

// The system would end a process that takes more without a word.
void ModelTraining::check_host_memory(Run& run, const TokenBudget& budget) const {
  const ModelConfig& config = run.student->model.config();
  const double needed = offloaded_bytes(config, budget.tokens_at_once(loop_options_.context)) *
                        run.world.local_size();
  const double available = available_host_bytes();
  if (available == 0 || needed <= available) return;
  throw std::runtime_error(fmt::format(
      "recompute: offload needs {} of host memory for the {} ranks of {}, but {} are free there: "
      "use a larger context, shorter rows or recompute: full",
      bytes_text(needed), run.world.local_size(), run.world.host(), bytes_text(available)));
}

std::string ModelTraining::offload_advice(const ModelConfig& config, const TokenBudget& budget,
                                          bool cuda) const {
  if (!loop_options_.offloads()) return "";
  if (!cuda) {
    return fmt::format(
        "stage {}: recompute: offload is full here: without a GPU there is no other memory", name);
  }
  const int64_t tokens = budget.tokens_at_once(loop_options_.context);
  return fmt::format("stage {}: inputs of blocks wait in {} of host memory a rank", name,
                     bytes_text(offloaded_bytes(config, tokens)));
}

bool ModelTraining::advance(Run& run) {
  if (loop_->done()) return false;
  TrainingLoop::Input input = loop_->next();
  if (input.num_target_tokens == 0) {
    loss_->pass_over(input.rows);
    loop_->pass_over(input);
    return true;
  }
  Network& student = *run.student;
  const PassOptions passes{.recompute = loop_options_.recompute_level(),
                           .sparse = loop_options_.attention == "sparse",
                           .clock = &loop_->clock(),
                           .offload = offload_.get(),
                           .selection = selection(student.model.config()),
                           .matmul = loop_options_.matmul_rule()};
  const StepOptions options{.lr = input.lr,
                            .clip = optimizer_options_.clip,
                            .clock = &loop_->clock(),
                            .accepts = [&](const StepResult& seen) {
                              return loop_->accepts(seen.losses[kLoss], seen.grad_norm);
                            }};
  loss_->begin_step(input.rows);
  StepResult result = take_step(
      input.micro_batches,
      [&](const Batch& batch, bool last) {
        return model_passes(student, *loss_, batch, last, passes);
      },
      student.parameters, *optimizer_, loop_->comm(), options);
  const nlohmann::json selected =
      passes.selection.weight > 0 ? take_selection(result.losses) : nlohmann::json::object();
  loop_->clock().enter(Phase::kData);
  loss_->end_step();
  nlohmann::json units = nlohmann::json::object();
  for (size_t p = 0; p < student.parameters.num_parts(); ++p) {
    if (optimizer_->trains(p)) units[student.parameters.layout(p)->name] = result.part_norms[p];
  }
  nlohmann::json line = {{"kl", result.losses[kKl]},
                         {"ce", result.losses[kCe]},
                         {"lr", input.lr},
                         {"loss_by_source", loop_->by_source(result.losses)},
                         {"grad_norm", result.grad_norm},
                         {"grad_norms", units}};
  line.update(selected);
  if (loop_->step() == 0) line["parameters"] = loop_->parameter_counts(student.parameters);
  loop_->finish(result.losses[kLoss], result.finite, line);
  return true;
}

void ModelTraining::end(Run& run) {
  run.world.together("", [&] {
    if (const auto kept = loss_->make_durable(); kept.valid()) kept.get();
  });
  run.student->parameters.set_clock(nullptr);
  if (needs_teacher()) run.teacher().parameters.set_clock(nullptr);
  loop_.reset();
  offload_.reset();
  optimizer_->release();
  optimizer_.reset();
  loss_.reset();
}

void ModelTraining::save(StateWriter& out) const {
  // A run that goes on from here does not come to these rows again.
  out.complete_after(loss_->make_durable());
  loop_->save(out);
  optimizer_->save(out);
}

void ModelTraining::load(StateReader& in) {
  loop_->load(in);
  optimizer_->load(in);
}

}  // namespace sala
