// HALO stage 1 (arXiv:2601.22156): for every layer at once, a lightning mixer learns to give the
// teacher's mixer output from the teacher's own mixer input. One teacher pass; each layer's mixer
// runs forward and backward as soon as its input exists and frees its graph, so memory does not
// grow with depth.
//
// Loss per layer: mean squared error over the variance of the teacher's output (measured once, on
// the first batch). Every mixer has a clip and a loss curve of its own.
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include "model/convert.h"
#include "model/mixers/mixers.h"
#include "model/parts.h"
#include "trainer/flops.h"
#include "trainer/plan.h"
#include "trainer/stages/training_loop.h"

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

  bool needs_full_source() const override { return true; }

  StagePlan plan(const PlanContext& context) const override {
    const ModelConfig& c = context.hybrid;
    StagePlan plan;
    plan.steps = budget_.num_steps();
    plan.tokens = plan.steps * budget_.batch_tokens;
    const double mixers =
        static_cast<double>(c.num_layers) * mixer_parameters(c, Mixer::kLightning);
    plan.weights_bytes = compute_bytes(context) * (num_parameters(context.source) + mixers);
    plan.gradient_bytes = 4 * mixers;
    plan.optimizer_bytes = (context.cuda ? 12 : 8) * mixers;
    plan.activation_bytes = static_cast<double>(budget_.micro_rows() * budget_.row_length) * 2 *
                            block_activation_bytes(c, compute_bytes(context));
    plan.flops = plan.tokens * per_token_flops(context.source, c);
    plan.checkpoint_bytes = 12 * mixers;
    plan.batch_bytes = batch_bytes(context, budget_);
    return plan;
  }

  void begin(Run& run) override {
    run_ = &run;
    run.teacher();  // reading it is collective: ranks without rows must join
    config_ = hybrid_config(run.source, {}, run.recipe.model.sparse, false);
    fresh_ = run.aligned.empty();
    run.aligned_is_final = false;
    for (int64_t l = 0; l < config_.num_layers; ++l) {
      const Layout layout = mixer_layout(config_, l, Mixer::kLightning);
      if (fresh_) {
        run.aligned.push_back(std::make_unique<Weights>(layout, at::kFloat, run.world.device()));
      }
      Weights& master = *run.aligned[l];
      if (run.world.compute_dtype() == at::kFloat) {
        parts_.push_back({&master, master.flat});
      } else {
        compute_.push_back(
            std::make_unique<Weights>(layout, run.world.compute_dtype(), run.world.device()));
        parts_.push_back({compute_.back().get(), master.flat});
        refresh(parts_.back());
      }
    }
    optimizer_ = std::make_unique<Optimizer>(parts_, optimizer_options_);
    loop_ = std::make_unique<TrainingLoop>(run, *this, budget_, optimizer_options_, loop_options_,
                                           per_token_flops(run.source, config_));
  }

  bool advance(Run& run) override {
    if (loop_->done()) return false;
    TrainingLoop::Input input = loop_->next();
    if (variance_.empty()) start_mixers(run, input.micro_batches);
    at::Tensor errors = at::zeros({config_.num_layers}, options(at::kDouble));
    for (const Batch& batch : input.micro_batches) align_batch(run.teacher(), batch, errors);
    reduce(run, errors);

    const std::vector<double> losses = to_vector(errors);
    const std::vector<double> norms = optimizer_->part_norms();
    double mean = 0;
    bool finite = true;
    std::vector<double> scale;
    for (size_t l = 0; l < losses.size(); ++l) {
      mean += losses[l] / static_cast<double>(losses.size());
      finite = finite && std::isfinite(losses[l]) && std::isfinite(norms[l]);
      const double clip = optimizer_options_.clip;
      scale.push_back(clip > 0 && norms[l] > clip ? clip / norms[l] : 1.0);
    }
    if (finite) {
      optimizer_->step(input.lr, scale);
    } else {
      optimizer_->zero_grad();
    }
    loop_->finish(mean, finite,
                  {{"lr", input.lr}, {"layer_losses", losses}, {"layer_grad_norms", norms}});
    return true;
  }

  void end(Run& run) override {
    run.aligned_is_final = true;
    loop_.reset();
    optimizer_->release();
    optimizer_.reset();
    parts_.clear();
    compute_.clear();
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

  int64_t longest_row() const override { return budget_.row_length; }
  int64_t step() const override { return loop_ ? loop_->step() : 0; }
  int64_t num_steps() const override { return budget_.num_steps(); }

 private:
  double per_token_flops(const ModelConfig& source, const ModelConfig& hybrid) const {
    const int64_t length = budget_.row_length;
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
  static void run_teacher(const Model& teacher, const Env& env) {
    teacher.run_units(0, teacher.units().size() - 1, {}, env);
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
    for (const Batch& batch : batches) {
      Env env = run.teacher().env(batch, false);
      env.tap = &tap;
      run_teacher(run.teacher(), env);
      count += static_cast<double>(batch.num_tokens());
    }
    for (at::Tensor* t : {&attention_squares, &sums, &count}) run.world.comm().all_reduce_sum(*t);
    const at::Tensor mean = sums.select(1, 0) / count;
    const at::Tensor variance = (sums.select(1, 1) / count - mean.square()).mean(1);
    variance_ = to_vector(variance);
    for (int64_t l = 0; l < L; ++l) {
      const at::Tensor rms = (attention_squares[l] / count).sqrt();
      if (fresh_) {  // a second align stage goes on with the mixers of the first
        start_lightning_mixer(config_, run.teacher().mixer(l), rms, *run.aligned[l]);
        refresh(parts_[l]);
      }
      TORCH_CHECK(variance_[l] > 0, "the teacher's mixer of layer ", l, " gives a constant output");
    }
  }

  void align_batch(Model& teacher, const Batch& batch, at::Tensor& errors) {
    Env env = teacher.env(batch, false);
    Env mixer_env = env;
    mixer_env.lightning_rope = rope_table(config_.lightning_rope_config, config_.head_size,
                                          config_.max_position, batch.position, batch.docs.longest);
    const double num_values =
        static_cast<double>(budget_.rows_per_step() * budget_.row_length * config_.width);
    const MixerTap tap = [&](int64_t l, const at::Tensor& input, const at::Tensor&,
                             const at::Tensor& output) {
      at::AutoGradMode with_graph(true);
      Weights& weights = *parts_[l].weights;
      const MixerCall call{config_, weights, mixer_env, l, nullptr};
      const at::Tensor difference =
          lightning_mixer(call, input.detach()).to(at::kFloat) - output.detach().to(at::kFloat);
      const at::Tensor loss = difference.square().sum() / (num_values * variance_[l]);
      const auto inputs = trainable(weights);
      const auto grads =
          inputs.empty() ? torch::autograd::variable_list{} : torch::autograd::grad({loss}, inputs);
      size_t g = 0;
      for (size_t i = 0; i < weights.views().size(); ++i) {
        if (weights.views()[i].requires_grad()) weights.accumulate_grad(i, grads[g++]);
      }
      errors[l] += loss.detach().to(at::kDouble);
    };
    env.tap = &tap;
    run_teacher(teacher, env);
  }

  static torch::autograd::variable_list trainable(const Weights& weights) {
    torch::autograd::variable_list list;
    for (const at::Tensor& view : weights.views()) {
      if (view.requires_grad()) list.push_back(view);
    }
    return list;
  }

  void reduce(Run& run, at::Tensor& errors) {
    for (const TrainedPart& part : parts_) {
      if (part.weights->grad.defined()) run.world.comm().all_reduce_sum(part.weights->grad);
    }
    run.world.comm().all_reduce_sum(errors);
  }

  TokenBudget budget_;
  OptimizerOptions optimizer_options_;
  LoopOptions loop_options_;

  Run* run_ = nullptr;
  bool fresh_ = true;                              // no aligned mixers came from before
  ModelConfig config_;                             // every layer lightning
  std::vector<std::unique_ptr<Weights>> compute_;  // bf16 copies on CUDA; empty on CPU
  std::vector<TrainedPart> parts_;
  std::vector<double> variance_;  // of the teacher's mixer output, per layer
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<TrainingLoop> loop_;
};

}  // namespace

std::unique_ptr<Stage> make_align_stage() { return std::make_unique<AlignStage>(); }

}  // namespace sala
