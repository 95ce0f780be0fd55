// `gates`: a gate in every layer between the teacher's attention and the aligned lightning mixer,
// all weights frozen, the gates learned together so that the gated model stays close to the teacher
// (KL on plain text and on recall of planted facts, rows.h) on a falling budget of attention
// (gates.h). One run of steps instead of one evaluation per layer, and it sees which layers stand
// in for each other. Layers that swap keeps whatever their score is (force_ends) stay open.
//
// A step takes `step_rows` rows in turn, shared out over the ranks one by one. What every row says
// of every gate is logged, in RUN/scores, and is all the state there is: a run that goes on takes
// the logged steps again. The same record answers how sure the choice is: the rows are drawn again,
// with replacement, and the gates take all steps with the gradients of the drawn rows (as they
// were measured: how other gates would have changed them is left out).
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <random>

#include "data/files/hash.h"
#include "model/convert.h"
#include "trainer/scores/confidence.h"
#include "trainer/scores/gate_pass.h"
#include "trainer/scores/gate_steps.h"
#include "trainer/scores/gates.h"
#include "trainer/scores/item_log.h"
#include "trainer/scores/method.h"

namespace sala {

namespace {

constexpr int64_t kDraws = 200;  // of rows, for standard errors and the choice's confidence

class GateScores : public ScoreMethod {
 public:
  GateScores(Run& run, const ScoreOptions& options, const std::string& stage, int64_t steps_told)
      : options_(options),
        stage_(stage),
        num_layers_(run.source.num_layers),
        choice_(run.recipe.layer_choice()),
        steps_told_(steps_told),
        linear_(hybrid_config(run.source, {}, run.recipe.model.sparse, false)),
        gates_(fresh_gates()) {}

  bool advance(Run& run) override {
    if (!log_) open(run);
    if (next_ >= num_steps()) return false;
    if (next_ < static_cast<int64_t>(steps_.size())) {
      take_step(run, steps_[next_]);  // made by an earlier start
      return true;
    }
    GateStep step = measure(run);
    run.world.together("scoring", [&] {
      check_finite(step);
      if (run.world.rank() == 0) log_->append(to_json(step, next_), key_);
    });
    steps_.push_back(std::move(step));
    take_step(run, steps_[next_]);
    return true;
  }

  int64_t step() const override { return next_; }
  int64_t num_steps() const override { return options_.steps; }

  nlohmann::json scores(Run& run) override {
    nlohmann::json record;
    run.world.together("scores", [&] {
      if (run.world.rank() == 0) record = combined(run);
    });
    return nlohmann::json::parse(run.world.broadcast(record.dump()));
  }

 private:
  // The recipe's number of kept layers; a quarter where it keeps none.
  int64_t budget() const {
    const int64_t kept = choice_.num_kept();
    return kept > 0 ? kept : std::max<int64_t>(1, num_layers_ / 4);
  }

  Gates fresh_gates() const {
    std::vector<bool> open;
    for (int64_t l = 0; l < num_layers_; ++l) open.push_back(choice_.forces(l, num_layers_));
    return Gates(std::move(open), budget(), options_.steps, options_.lr);
  }

  void open(Run& run) {
    run.world.together("score stage", [&] { rows_ = read_score_rows(run, options_, stage_); });
    order_.resize(rows_.size());
    std::iota(order_.begin(), order_.end(), 0);
    std::mt19937_64 random(static_cast<uint64_t>(run.recipe.run.seed));
    for (size_t i = order_.size(); i > 1; --i) std::swap(order_[random() % i], order_[i - 1]);
    const std::string mixers = hash_of_mixers(run);  // a collective: not where one rank may throw
    run.world.together("score stage", [&] {
      const nlohmann::json identity = {{"stage", stage_},
                                       {"method", options_.method},
                                       {"steps", options_.steps},
                                       {"step_rows", options_.step_rows},
                                       {"lr", options_.lr},
                                       {"budget", budget()},
                                       {"ends", choice_.forces(0, num_layers_)},
                                       {"seed", run.recipe.run.seed},
                                       {"tokens", hash_of_rows(rows_)},
                                       {"mixers", mixers}};
      key_ = xxh3_64_hex(identity.dump().data(), identity.dump().size());
      log_ = std::make_unique<ItemLog>(run.folder + "/scores", run.world.rank());
    });
    run.world.barrier();
    // As rank 0 sees the files: all ranks make the same steps.
    std::string items;
    run.world.together("score stage", [&] {
      if (run.world.rank() == 0) items = nlohmann::json(log_->read(key_)).dump();
    });
    steps_ = gate_steps(nlohmann::json::parse(run.world.broadcast(items)));
    clock_.emplace();
  }

  GateStep measure(Run& run) {
    const int64_t num_rows = options_.step_rows, R = run.world.size();
    const std::vector<double> values = gates_.values();
    GateStep step;
    for (int64_t r = 0; r < num_rows; ++r) {
      step.rows.push_back(order_[static_cast<size_t>(next_ * num_rows + r) % order_.size()]);
    }
    at::Tensor all = at::zeros({num_rows, num_layers_ + 2},
                               at::TensorOptions().dtype(at::kDouble).device(run.world.device()));
    run.world.together("scoring", [&] {
      for (int64_t first = 0; first < num_rows; first += R) {
        // Leases are collective: a rank without a row runs the last one for nothing.
        const int64_t r = first + run.world.rank();
        const int64_t row = step.rows[static_cast<size_t>(std::min(r, num_rows - 1))];
        const at::Tensor result = gate_pass(run, linear_, rows_[row], values);
        if (r < num_rows) all[r].copy_(result);
      }
    });
    run.world.comm().all_reduce_sum(all);
    const at::Tensor host = all.cpu();
    for (int64_t r = 0; r < num_rows; ++r) {
      const double* row = host.const_data_ptr<double>() + r * (num_layers_ + 2);
      step.values.emplace_back(row, row + num_layers_ + 2);
    }
    return step;
  }

  void check_finite(const GateStep& step) const {
    for (const auto& row : step.values) {
      if (std::all_of(row.begin(), row.end(), [](double x) { return std::isfinite(x); })) continue;
      throw std::runtime_error(
          fmt::format("the KL of the gated model or its gradient is not finite at step {}: align "
                      "longer, or at a lower lr",
                      next_));
    }
  }

  std::vector<double> equal_weights() const { return std::vector<double>(rows_.size(), 1.0); }

  void take_step(Run& run, const GateStep& step) {
    const std::vector<double> mean = mean_of(step, equal_weights());
    const std::vector<double> values = gates_.values();
    const double sum = gates_.budget();
    gates_.step(std::span(mean).subspan(2));
    ++next_;
    if (next_ > steps_told_) {
      run.metrics.event({{"event", "gates"},
                         {"stage", stage_},
                         {"step", next_},
                         {"plain", mean[0]},
                         {"recall", mean[1]},
                         {"budget", sum},
                         {"gates", values}});
    }
    run.metrics.progress({.stage = stage_,
                          .unit = "steps of the gates",
                          .step = next_,
                          .num_steps = num_steps(),
                          .loss = mean[0] + mean[1],
                          .seconds_left = clock_->seconds_left(next_, num_steps())});
  }

  // The scores that the drawn rows give.
  std::vector<double> drawn_scores(const std::vector<double>& weights) const {
    Gates gates = fresh_gates();
    const std::vector<double> nothing(static_cast<size_t>(num_layers_), 0.0);
    for (const GateStep& step : steps_) {
      const std::vector<double> mean = mean_of(step, weights);
      gates.step(mean.empty() ? std::span(nothing) : std::span(mean).subspan(2));
    }
    return gates.scores();
  }

  nlohmann::json combined(const Run& run) const {
    const std::vector<double> found = gates_.scores(), values = gates_.values();
    const auto num_rows = static_cast<int64_t>(rows_.size());
    std::vector<std::vector<double>> drawn;
    for (int64_t d = 0; d < kDraws && num_rows > 1; ++d) {
      const auto seed = static_cast<uint64_t>(run.recipe.run.seed);
      drawn.push_back(drawn_scores(drawn_weights(num_rows, seed, d)));
    }
    const Confidence sure = confidence(choice_, found, drawn);
    nlohmann::json record = choice_record(choice_, found, drawn.empty() ? nullptr : &sure);
    const std::vector<double> last = mean_of(steps_.back(), equal_weights());
    record["documents"] = num_rows;
    record["steps"] = next_;
    record["plain"] = last[0];
    record["recall"] = last[1];
    for (int64_t l = 0; l < num_layers_; ++l) {
      record["layers"].push_back({{"layer", l},
                                  {"score", found[l]},
                                  {"gate", values[l]},
                                  {"forced", choice_.forces(l, num_layers_)},
                                  {"se", sure.standard_error[l]},
                                  {"kept_share", sure.kept_share[l]}});
    }
    return record;
  }

  ScoreOptions options_;
  std::string stage_;
  int64_t num_layers_;
  LayerChoice choice_;
  int64_t steps_told_;
  Model linear_;  // every layer lightning: its configuration and tables
  Gates gates_;
  int64_t next_ = 0;
  std::string key_;
  std::unique_ptr<ItemLog> log_;
  std::optional<ItemClock> clock_;
  std::vector<ScoreRow> rows_;
  std::vector<int64_t> order_;   // of the rows, over all steps
  std::vector<GateStep> steps_;  // that were made
};

}  // namespace

std::unique_ptr<ScoreMethod> make_gate_scores(Run& run, const ScoreOptions& options,
                                              const std::string& stage, int64_t steps_told) {
  return std::make_unique<GateScores>(run, options, stage, steps_told);
}

}  // namespace sala
