// HALO stage 1 (arXiv:2601.22156): for every layer at once, a lightning mixer learns to give the
// teacher's mixer output from the teacher's own mixer input. One teacher pass; each layer's mixer
// runs forward and backward as soon as its input exists, so memory does not grow with depth.
//
// Loss per layer: mean squared error over the variance of the teacher's output (measured once, on
// the first batch). Every mixer has a clip and a loss curve of its own.
#include <fmt/format.h>

#include <numeric>

#include "kernels/squared_error.h"
#include "model/convert.h"
#include "model/forward.h"
#include "model/kept_tensors.h"
#include "model/mixers/mixers.h"
#include "model/weights/part_buffer.h"
#include "model/weights/parts.h"
#include "trainer/planning/flops.h"
#include "trainer/planning/plan.h"
#include "trainer/planning/speed.h"
#include "trainer/ranks/device_info.h"
#include "trainer/stages/training_loop.h"
#include "trainer/step.h"

namespace sala {

namespace {

class AlignStage : public Stage {
 public:
  std::string type() const override { return "align"; }

  void describe(Fields& fields) override {
    budget_.describe(fields);
    optimizer_options_.describe(fields, Need::kRequired);
    loop_options_.describe(fields, *this);
  }

  void check(const Recipe& recipe, const std::string& path, Problems& problems) const override {
    const bool usable = budget_.check(path, recipe, problems);
    optimizer_options_.check(path, usable ? budget_.num_steps() : 0, problems);
    if (optimizer_options_.schedule.lr == 0) {
      problems.add(path + ".lr", "must be more than 0: mixers of every size align at 1e-3");
    }
    if (evaluate_every > 0) {
      problems.add(path + ".evaluate_every", "there is no hybrid to evaluate before the swap");
    }
  }

  void check_inputs(const StageInputs& inputs, Problems& problems) override {
    if (!inputs.context) return;
    check_context(path, loop_options_.context, budget_.row_length, problems);
    const std::vector<Layout> layouts = aligned_layouts(inputs.context->hybrid);
    optimizer_options_.check_names(path, layouts, problems);
    optimizer_options_.check_trains(path, layouts, problems);
  }

  bool needs_full_source() const override { return true; }
  int64_t context() const override { return loop_options_.context; }

  StagePlan plan(const PlanContext& context) const override {
    const ModelConfig& c = context.hybrid;
    StagePlan plan;
    plan.steps = budget_.num_steps();
    plan.tokens = plan.steps * budget_.batch_tokens;
    const TokenBudget budget = budget_.suited_to(c.width, roomy_gpus(context.cuda),
                                                 context.num_ranks / loop_options_.context);
    const int64_t tokens = budget.tokens_at_once(loop_options_.context);
    const PassShape shape{tokens, compute_bytes(context), false};
    const PlannedParameters teacher = plan_parameters(context, context.source, false);
    const PlannedParameters mixers = plan_aligned(context);
    plan.weights_bytes = teacher.weights + mixers.weights;
    plan.gradient_bytes = mixers.gradients;
    plan.optimizer_bytes = mixers.optimizer;
    plan.activation_bytes = taken_for_activations(
        context,
        static_cast<double>(align_moment_bytes(context.source, c, Mixer::kLightning, shape)));
    plan.flops = plan.tokens * per_token_flops(context.source, c, budget_.row_length);
    plan.checkpoint_bytes =
        12.0 * static_cast<double>(c.num_layers) * mixer_parameters(c, Mixer::kLightning);
    plan.batch_bytes = batch_bytes(context, budget_, loop_options_.context);
    plan_align_traffic(context, {budget, loop_options_.context}, plan);
    return plan;
  }

  void begin(Run& run) override {
    run_ = &run;
    run.teacher();  // reading it is collective: ranks without rows must join
    config_ = hybrid_config(run.source, {}, run.recipe.model.sparse, false);
    mixer_model_ = std::make_unique<Model>(config_);
    fresh_ = !run.aligned;
    run.aligned_is_final = false;
    if (fresh_) run.make_aligned(config_);
    optimizer_ = std::make_unique<Optimizer>(*run.aligned, optimizer_options_);
    const TokenBudget budget =
        budget_.suited_to(config_.width, roomy_gpus(run.world.device().is_cuda()),
                          run.world.size() / loop_options_.context);
    loop_ = std::make_unique<TrainingLoop>(run, *this, budget, optimizer_options_, loop_options_,
                                           [source = run.source, hybrid = config_](int64_t length) {
                                             return per_token_flops(source, hybrid, length);
                                           });
    run.aligned->set_clock(&loop_->clock());
    run.teacher().parameters.set_clock(&loop_->clock());
  }

  bool advance(Run& run) override {
    if (loop_->done()) return false;
    TrainingLoop::Input input = loop_->next();
    if (variance_.empty()) start_mixers(run, input.micro_batches);
    const StepResult result =
        take_step(input.micro_batches,
                  [&](const Batch& batch, bool last) { return align_passes(run, batch, last); },
                  *run.aligned, *optimizer_, loop_->comm(),
                  {.lr = input.lr,
                   .clip = optimizer_options_.clip,
                   .clip_each_part = true,
                   .clock = &loop_->clock()});
    const double sum = std::accumulate(result.losses.begin(), result.losses.end(), 0.0);
    nlohmann::json line = {
        {"lr", input.lr}, {"layer_losses", result.losses}, {"layer_grad_norms", result.part_norms}};
    if (loop_->step() == 0) line["parameters"] = loop_->parameter_counts(*run.aligned);
    loop_->finish(sum / static_cast<double>(config_.num_layers), result.finite, line);
    return true;
  }

  void end(Run& run) override {
    run.aligned_is_final = true;
    run.aligned->set_clock(nullptr);
    run.teacher().parameters.set_clock(nullptr);
    loop_.reset();
    optimizer_->release();
    optimizer_.reset();
    mixer_model_.reset();
    variance_.clear();
  }

  void save(StateWriter& out) const override {
    loop_->save(out);
    optimizer_->save(out, "aligned.");
    out.json("align", {{"variance", variance_}});
  }

  void load(StateReader& in) override {
    loop_->load(in);
    optimizer_->load(in, "aligned.");
    variance_ = in.json("align").at("variance").get<std::vector<double>>();
  }

  bool trains() const override { return true; }
  int64_t longest_row() const override { return budget_.row_length; }
  int64_t step() const override { return loop_ ? loop_->step() : 0; }
  int64_t num_steps() const override { return budget_.num_steps(); }

 private:
  static double per_token_flops(const ModelConfig& source, const ModelConfig& hybrid,
                                int64_t length) {
    return forward_flops(source, length, false) - head_flops(source) +
           3.0 * hybrid.num_layers * mixer_flops(hybrid, Mixer::kLightning, length, false);
  }

  at::TensorOptions options(at::ScalarType dtype) const {
    return at::TensorOptions().dtype(dtype).device(run_->world.device());
  }

  static std::vector<double> to_vector(const at::Tensor& x) {
    const at::Tensor cpu = x.to(at::kDouble).cpu().contiguous();
    return {cpu.const_data_ptr<double>(), cpu.const_data_ptr<double>() + cpu.numel()};
  }

  // All blocks of the teacher; the final norm and the head are not needed.
  static void run_teacher(Network& teacher, const Env& env) {
    run_units(teacher.model, teacher.parameters, 0, teacher.model.units().size(), {}, env);
  }

  // Statistics of the teacher on the first batch: what the output norms start from and what errors
  // are measured in. All ranks get the same.
  void start_mixers(Run& run, const std::vector<Batch>& batches) {
    const int64_t L = config_.num_layers, C = config_.width;
    at::Tensor attention_squares = at::zeros({L, config_.q_size()}, options(at::kDouble));
    at::Tensor sums = at::zeros({L, 2, C}, options(at::kDouble));
    at::Tensor count = at::zeros({1}, options(at::kDouble));
    const MixerTap tap = [&](int64_t l, const at::Tensor&, const at::Tensor& attention,
                             const at::Tensor& output) {
      attention_squares[l] += attention.to(at::kFloat).square().sum(0, false, at::kDouble);
      const at::Tensor y = output.to(at::kFloat);
      sums[l][0] += y.sum(0, false, at::kDouble);
      sums[l][1] += y.square().sum(0, false, at::kDouble);
    };
    Network& teacher = run.teacher();
    for (const Batch& batch : batches) {
      Env env = teacher.model.env(batch, false);
      // An idle batch (batches.h) is run for its collectives alone.
      if (!batch.idle) env.tap = &tap;
      run_teacher(teacher, env);
      if (!batch.idle) count += static_cast<double>(batch.num_tokens());
    }
    for (at::Tensor* t : {&attention_squares, &sums, &count}) run.world.comm().all_reduce_sum(*t);
    const at::Tensor mean = sums.select(1, 0) / count;
    const at::Tensor variance = (sums.select(1, 1) / count - mean.square()).mean(1);
    variance_ = to_vector(variance);
    for (int64_t l = 0; l < L; ++l) {
      TORCH_CHECK(variance_[l] > 0, "the teacher's mixer of layer ", l, " gives a constant output");
    }
    if (!fresh_) return;  // a second align stage goes on with the mixers of the first
    const at::Tensor rms = (attention_squares / count).sqrt();  // (L, NH * HS)
    // From the source's own values, not from the compute type's.
    const at::Device device = run.world.device();
    PartBuffer sources(device), starts(device);
    run.read_source(
        teacher.model.layouts(), [L](size_t p) { return Model::layer_of_mixer(p, L).has_value(); },
        [&](size_t p, Weights& part) {
          const int64_t l = *Model::layer_of_mixer(p, L);
          const Weights source = sources.copy_of(part, at::kFloat);
          Weights mixer = starts.weights(run.aligned->layout(static_cast<size_t>(l)), at::kFloat);
          start_lightning_mixer(config_, source, rms[l], mixer);
          run.aligned->set_whole(static_cast<size_t>(l), mixer.flat);
        });
  }

  // The teacher forward; each layer's mixer forward and backward as soon as its input exists.
  at::Tensor align_passes(Run& run, const Batch& batch, bool last) {
    Network& teacher = run.teacher();
    Parameters& mixers = *run.aligned;
    loop_->clock().enter(Phase::kForward);
    at::Tensor errors = at::zeros({config_.num_layers}, options(at::kDouble));
    Env env = teacher.model.env(batch, false);
    const Env mixer_env = mixer_model_->env(batch, false);
    const double num_values =
        static_cast<double>(budget_.rows_per_step() * budget_.row_length * config_.width);
    const MixerTap tap = [&](int64_t l, const at::Tensor& input, const at::Tensor&,
                             const at::Tensor& target) {
      const auto part = static_cast<size_t>(l);
      loop_->clock().enter(Phase::kBackward);  // the mixer's forward too: align's own work
      const Lease weights = mixers.lease(part);
      const size_t next = part + 1;
      if (l + 1 < config_.num_layers) mixers.hint({&next, 1});
      Saved saved;
      MixerCall call{config_, weights[0], mixer_env, l, &saved};
      call.wants_dx = false;
      const at::Tensor y = mixer_forward(Mixer::kLightning, call, input);
      const double scale = batch.idle ? 0.0 : 1.0 / (num_values * variance_[l]);
      const auto [error, dy] = squared_error(y, target, scale);
      errors[l] += error;
      mixer_backward(Mixer::kLightning, call, dy, mixers.gradient(part));
      mixers.reduce(part, last);
      loop_->clock().enter(Phase::kForward);
    };
    env.tap = &tap;
    run_teacher(teacher, env);
    return errors;
  }

  TokenBudget budget_;
  OptimizerOptions optimizer_options_;
  LoopOptions loop_options_;

  Run* run_ = nullptr;
  bool fresh_ = true;                   // no aligned mixers came from before
  ModelConfig config_;                  // every layer lightning
  std::unique_ptr<Model> mixer_model_;  // of config_: rotary tables
  std::vector<double> variance_;        // of the teacher's mixer output, per layer
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<TrainingLoop> loop_;
};

}  // namespace

std::unique_ptr<Stage> make_align_stage() { return std::make_unique<AlignStage>(); }

}  // namespace sala
