// Data, schedule, metrics and the non-finite policy around a step.
#include "trainer/stages/training_loop.h"

#include <fmt/format.h>

#include <numeric>

#include "trainer/batches.h"
#include "trainer/evaluation/evaluate.h"
#include "trainer/losses.h"
#include "trainer/ranks/device_info.h"

namespace sala {

std::vector<SourceSpec> source_specs(const Recipe& recipe,
                                     const std::map<std::string, double>& data) {
  std::vector<SourceSpec> specs;
  for (const auto& [name, weight] : data) {
    specs.push_back({name, expand_globs(recipe.data.sources.at(name).files), weight});
  }
  return specs;
}

TrainingLoop::TrainingLoop(Run& run, const Stage& stage, const TokenBudget& budget,
                           const OptimizerOptions& optimizer, const LoopOptions& options,
                           FlopsPerToken flops_per_token, std::string on_spike)
    : run_(run),
      stage_(stage),
      budget_(budget),
      optimizer_(optimizer),
      options_(options),
      on_spike_(std::move(on_spike)),
      flops_per_token_(std::move(flops_per_token)),
      num_steps_(budget.num_steps()),
      clock_(run.world.device()),
      comm_(std::make_unique<WaitingComm>(run.world.comm(), &clock_)) {
  if (Comm* sequence = run.world.sequence_comm(static_cast<int>(options.context))) {
    sequence_ = std::make_unique<WaitingComm>(*sequence, &clock_);
  }
}

void TrainingLoop::open_loader() {
  LoaderConfig config;
  config.row_length = budget_.row_length;
  config.rows_per_step = budget_.rows_per_step();
  config.seed = static_cast<uint64_t>(run_.recipe.run.seed);
  config.lanes = run_.recipe.data.lanes;
  config.stage = stage_.name;
  config.tokenizer = run_.tokenizer;
  config.catalog = run_.stores;
  config.rank = run_.world.rank() / static_cast<int>(options_.context);
  config.num_ranks = num_data_ranks();
  loader_ =
      std::make_unique<Loader>(source_specs(run_.recipe, budget_.data), config, run_.data_state);
}

TrainingLoop::Input TrainingLoop::next() {
  started_ = std::chrono::steady_clock::now();
  clock_.enter(Phase::kData);
  StepRows rows;
  read_together(run_, "reading training data", [&] {
    if (!loader_) open_loader();
    rows = loader_->next();
  });
  state_after_ = std::move(rows.state_after);
  Input input;
  input.num_target_tokens = rows.num_target_tokens;
  step_flops_ = flops_of(rows.plans);
  input.lr = optimizer_.schedule.at(step_, num_steps_);
  input.micro_batches = make_micro_batches(
      rows.rows, budget_.micro_rows(), budget_.num_micro_batches(num_data_ranks()),
      {static_cast<double>(rows.num_target_tokens),
       budget_.data.size() > 1 ? static_cast<int64_t>(budget_.data.size()) : 0},
      run_.world.device(), sequence_.get());
  input.rows = std::move(rows);
  return input;
}

double TrainingLoop::flops_of(const std::vector<RowPlan>& plans) {
  double flops = 0;
  for (const RowPlan& plan : plans) {
    for (const Piece& piece : plan) {
      const auto [known, is_new] = known_flops_.try_emplace(piece.count, 0.0);
      if (is_new) known->second = flops_per_token_(piece.count);
      flops += known->second * static_cast<double>(piece.count);
    }
  }
  return flops;
}

nlohmann::json TrainingLoop::by_source(const std::vector<double>& losses) const {
  nlohmann::json named = nlohmann::json::object();
  size_t at = kBySource;
  for (const auto& [source, _] : budget_.data) {
    if (at + 1 >= losses.size()) break;
    if (losses[at + 1] > 0) named[source] = losses[at] / losses[at + 1];
    at += 2;
  }
  return named;
}

nlohmann::json TrainingLoop::parameter_counts(const Parameters& parameters) const {
  int64_t trainable = 0, frozen = 0;
  for (size_t p = 0; p < parameters.num_parts(); ++p) {
    for (const Entry& entry : parameters.layout(p)->entries) {
      (optimizer_.rule_for(entry.name).freeze ? frozen : trainable) += entry.num_elements();
    }
  }
  return {{"trainable", trainable}, {"frozen", frozen}};
}

int TrainingLoop::num_data_ranks() const {
  return run_.world.size() / static_cast<int>(options_.context);
}

void TrainingLoop::count_step() {
  run_.data_state = std::move(state_after_);
  ++step_;
  run_.tokens_seen += budget_.batch_tokens;
}

void TrainingLoop::pass_over(const Input& input) {
  clock_.read();
  count_step();
  run_.metrics.event({{"event", "step_without_targets"},
                      {"stage", stage_.name},
                      {"step", step_},
                      {"lr", input.lr},
                      {"tokens", run_.tokens_seen}});
  run_.metrics.note(
      fmt::format("stage {} step {}: no token of this step counts as a target (loss_mask is 0 in "
                  "all of its rows); no parameter was changed",
                  stage_.name, step_));
  if (done()) judge();
}

void TrainingLoop::finish(double loss, bool finite, nlohmann::json line) {
  const PhaseSeconds spent = clock_.read();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - started_;
  count_step();

  // The first steps also open files and warm up libraries; after them a running mean.
  ++steps_here_;
  seconds_per_step_ =
      steps_here_ <= 2 ? took.count() : 0.9 * seconds_per_step_ + 0.1 * took.count();
  const double tokens_per_second = static_cast<double>(budget_.batch_tokens) / took.count();
  const double peak = device_peak_flops(run_.world.device()) * run_.world.size();
  const double mfu = peak > 0 ? step_flops_ / took.count() / peak : -1;
  const double memory = peak_memory_bytes(run_.world.device());
  line.update({{"event", "step"},
               {"stage", stage_.name},
               {"step", step_},
               {"loss", loss},
               {"finite", finite},
               {"tokens", run_.tokens_seen},
               {"tokens_per_second", tokens_per_second},
               {"seconds", took.count()},
               {"memory_bytes", memory}});
  const double computing =
      spent[static_cast<size_t>(Phase::kForward)] + spent[static_cast<size_t>(Phase::kBackward)];
  // How much less this rank had to compute than the one that had most.
  line["skew_seconds"] = run_.world.max(computing) - computing;
  for (size_t phase = 0; phase < spent.size(); ++phase) {
    line["spent"][kPhaseNames[phase]] = spent[phase];
    if (steps_here_ > 1) spent_[phase] += spent[phase];  // the first one warms up
  }
  if (mfu >= 0) line["mfu"] = mfu;
  run_.metrics.event(line);
  Progress progress{.stage = stage_.name, .step = step_, .num_steps = num_steps_, .loss = loss};
  progress.lr = line.at("lr").get<double>();
  if (line.contains("grad_norm")) progress.grad_norm = line.at("grad_norm").get<double>();
  progress.tokens_per_second = tokens_per_second;
  // Of the mean step: the time left of the run would jump with every slow one.
  progress.flops_per_second = step_flops_ / seconds_per_step_;
  progress.mfu = mfu;
  progress.memory_bytes = memory;
  progress.seconds_left = seconds_per_step_ * static_cast<double>(num_steps_ - step_);
  run_.metrics.progress(progress);

  if (!spike_.empty()) tell_spike();
  check_skips(finite);
  spike_.clear();
  if (finite) check_divergence(loss, *progress.lr);
  if (done()) tell_spent();
  if (done()) judge();
}

bool TrainingLoop::accepts(double loss, double grad_norm) {
  spike_ = spikes_.add(loss, grad_norm);
  return spike_.empty() || on_spike_ == "warn";
}

void TrainingLoop::tell_spike() {
  const std::string what = fmt::format(
      "stage {} step {}: spike: {}; {}", stage_.name, step_, spike_,
      on_spike_ == "warn" ? "on_spike: warn goes on" : "no parameter was changed on any rank");
  run_.metrics.event({{"event", "spike"},
                      {"stage", stage_.name},
                      {"step", step_},
                      {"tokens", run_.tokens_seen},
                      {"text", what}});
  run_.metrics.note("warning: " + what);
  if (on_spike_ != "stop") return;
  throw SharedError(what + " (on_spike: stop); lower lr or look at the data of this step");
}

void TrainingLoop::check_skips(bool finite) {
  const bool spiked = !spike_.empty() && on_spike_ == "skip";
  skips_in_a_row_ = finite && !spiked ? 0 : skips_in_a_row_ + 1;
  if (!finite) {
    run_.metrics.note(
        fmt::format("stage {} step {}: loss or gradient is not finite on some rank; "
                    "no parameter was changed on any rank",
                    stage_.name, step_));
  }
  if ((!finite && options_.on_nonfinite == "stop") || skips_in_a_row_ > options_.max_skips) {
    throw SharedError(fmt::format(
        "stage {} stopped at step {}: {} step(s) in a row with a {} loss or gradient ({}: {}, "
        "max_skips: {}); lower lr or look at the data of this step",
        stage_.name, step_, skips_in_a_row_, finite ? "spike of" : "non-finite",
        finite ? "on_spike" : "on_nonfinite", finite ? on_spike_ : options_.on_nonfinite,
        options_.max_skips));
  }
}

// Every rank holds the same losses and comes to the same end.
void TrainingLoop::check_divergence(double loss, double lr) {
  const bool before = watch_.diverged();
  watch_.add(loss);
  if (before || !watch_.diverged()) return;
  const std::string what = fmt::format(
      "stage {} diverged: at step {} the loss is {:.4g}, the lowest of its first steps was {:.4g}",
      stage_.name, step_, loss, watch_.began());
  run_.metrics.event({{"event", "divergence"},
                      {"stage", stage_.name},
                      {"step", step_},
                      {"tokens", run_.tokens_seen},
                      {"text", what}});
  if (options_.on_divergence == "warn") {
    run_.metrics.note(what + "; on_divergence: warn goes on");
    return;
  }
  throw SharedError(fmt::format(
      "{}; the model is being destroyed. lr is {:.2g} here (peak {:.2g}): lower it or lengthen the "
      "warm-up, and start again with --from a checkpoint before this stage, in another run.folder; "
      "on_divergence: warn would go on",
      what, lr, optimizer_.schedule.lr));
}

// A stage that ends worse than it began is said in the log, the report and the model card.
void TrainingLoop::judge() {
  const auto compared = watch_.compare();
  if (!compared || !compared->worse) return;
  const std::string verdict = fmt::format(
      "stage {} ended worse than it began: loss {:.4g} in its first steps, {:.4g} in its last",
      stage_.name, compared->began, compared->ended);
  run_.verdicts.push_back(verdict);
  run_.metrics.event({{"event", "verdict"},
                      {"stage", stage_.name},
                      {"step", step_},
                      {"tokens", run_.tokens_seen},
                      {"text", verdict}});
  run_.metrics.note("warning: " + verdict);
}

void TrainingLoop::tell_spent() const {
  const double all = std::accumulate(spent_.begin(), spent_.end(), 0.0);
  if (all == 0) return;
  std::string text;
  for (size_t phase = 0; phase < spent_.size(); ++phase) {
    text += fmt::format("{}{} {:.1f} %", phase > 0 ? ", " : "", kPhaseNames[phase],
                        100 * spent_[phase] / all);
  }
  run_.metrics.note(fmt::format("stage {} spent its steps on: {}", stage_.name, text));
}

void TrainingLoop::save(StateWriter& out) const {
  out.json("loop", {{"step", step_},
                    {"skips_in_a_row", skips_in_a_row_},
                    {"watch", watch_.state()},
                    {"spikes", spikes_.state()}});
}

void TrainingLoop::load(StateReader& in) {
  const nlohmann::json state = in.json("loop");
  step_ = state.at("step").get<int64_t>();
  skips_in_a_row_ = state.at("skips_in_a_row").get<int64_t>();
  watch_.restore(state.at("watch"));
  if (state.contains("spikes")) spikes_.restore(state.at("spikes"));
}

}  // namespace sala
