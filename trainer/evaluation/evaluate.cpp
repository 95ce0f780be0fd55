// Held-out losses and KL, shared out over the ranks row by row.
#include "trainer/evaluation/evaluate.h"

#include <fmt/format.h>
#include <cmath>
#include <map>

#include "data/eval_rows.h"
#include "kernels/ops.h"
#include "model/forward.h"
#include "trainer/batches.h"
#include "trainer/evaluation/needles.h"
#include "trainer/ranks/stop_signals.h"

namespace sala {

namespace {

constexpr int64_t kNumBuckets = 24;  // positions [0, 128), [128, 256), [256, 512), …

int64_t bucket_start(int64_t b) { return b == 0 ? 0 : int64_t{64} << b; }

// What one rank adds up over its tokens; all fields are sums, so ranks add elementwise.
struct Sums {
  explicit Sums(int64_t num_rows) : rows(at::zeros({num_rows, 3}, at::kDouble)) {}
  at::Tensor rows;  // Σ loss, Σ kl, Σ weight of each row
  at::Tensor bucket_loss = at::zeros({kNumBuckets}, at::kDouble);
  at::Tensor bucket_weight = at::zeros({kNumBuckets}, at::kDouble);

  void reduce(World& world) {
    for (at::Tensor* t : {&rows, &bucket_loss, &bucket_weight}) {
      at::Tensor x = t->to(world.device());
      world.comm().all_reduce_sum(x);
      *t = x.cpu();
    }
  }
};

VocabLoss row_losses(Network& network, Network* teacher, const Batch& batch, bool sparse) {
  at::NoGradGuard no_grad;
  const Model& model = network.model;
  at::Tensor x_teacher;
  if (teacher)
    x_teacher = hidden(teacher->model, teacher->parameters, teacher->model.env(batch, false));
  const at::Tensor x = hidden(model, network.parameters, model.env(batch, sparse));
  const Lease head = network.parameters.lease(model.head_parts());
  const at::Tensor& w = model.head_weight(head);
  const double scale = model.config().logit_scale;
  if (!teacher) return linear_cross_entropy(x, w, batch.targets, batch.loss_weight, scale);
  const Lease teacher_head = teacher->parameters.lease(teacher->model.head_parts());
  return linear_kl(x, w, scale, x_teacher, teacher->model.head_weight(teacher_head),
                   teacher->model.config().logit_scale, batch.targets, batch.loss_weight,
                   DistillConfig{});
}

// Losses of one pass: `first` is the number of the group's first row, `step` from row to row; this
// rank has the line's tokens from `begin` on.
struct PassLosses {
  std::span<const Row> group;
  int64_t first, step, begin;
  at::Tensor loss, kl;  // (T) fp64 on the CPU; kl may be undefined
};

void add_losses(Sums& sums, const PassLosses& pass) {
  double* rows = sums.rows.data_ptr<double>();
  double* bucket_loss = sums.bucket_loss.data_ptr<double>();
  double* bucket_weight = sums.bucket_weight.data_ptr<double>();
  const double* loss = pass.loss.const_data_ptr<double>();
  const double* kl = pass.kl.defined() ? pass.kl.const_data_ptr<double>() : nullptr;
  int64_t line = -pass.begin;  // the row's first token in this rank's piece
  int64_t number = pass.first;
  for (const Row& row : pass.group) {
    const auto length = static_cast<int64_t>(row.ids.size());
    const int64_t from = std::max<int64_t>(0, -line);
    for (int64_t t = from; t < std::min(length, pass.loss.numel() - line); ++t) {
      const double w = row.loss_weight[t];
      if (w == 0) continue;
      rows[3 * number] += w * loss[line + t];
      if (kl) rows[3 * number + 1] += w * kl[line + t];
      rows[3 * number + 2] += w;
      const int64_t b = row.position[t] < 128
                            ? 0
                            : std::min<int64_t>(kNumBuckets - 1, std::ilogb(row.position[t]) - 6);
      bucket_loss[b] += w * loss[line + t];
      bucket_weight[b] += w;
    }
    line += length;
    number += pass.step;
  }
}

// Mean over tokens and its standard error over rows, of column `c` of the rows' sums.
std::pair<double, double> mean_and_error(const at::Tensor& rows, int64_t c) {
  const auto* values = rows.const_data_ptr<double>();
  double n = 0, sum = 0, weight = 0, of_means = 0, squares = 0;
  for (int64_t r = 0; r < rows.size(0); ++r) {
    const double w = values[3 * r + 2];
    if (w == 0) continue;
    const double mean = values[3 * r + c] / w;
    n += 1, sum += values[3 * r + c], weight += w, of_means += mean, squares += mean * mean;
  }
  const double mean = of_means / n;
  const double error = n < 2 ? 0 : std::sqrt(std::max(0.0, squares / n - mean * mean) / (n - 1));
  return {sum / weight, error};
}

nlohmann::json source_result(const std::string& name, const Sums& sums, bool with_kl) {
  auto at_ = [](const at::Tensor& t, int64_t i) { return t[i].item<double>(); };
  const double weight = sums.rows.select(1, 2).sum().item<double>();
  if (weight == 0) throw SharedError("held-out source " + name + " gave no token to predict");
  const auto [loss, loss_se] = mean_and_error(sums.rows, 0);
  nlohmann::json result = {
      {"loss", loss}, {"loss_se", loss_se}, {"tokens", static_cast<int64_t>(weight)}};
  if (with_kl) {
    const auto [kl, kl_se] = mean_and_error(sums.rows, 1);
    result["kl"] = kl;
    result["kl_se"] = kl_se;
  }
  nlohmann::json buckets = nlohmann::json::array();
  for (int64_t b = 0; b < kNumBuckets; ++b) {
    const double w = at_(sums.bucket_weight, b);
    if (w == 0) continue;
    buckets.push_back({{"from", bucket_start(b)},
                       {"to", bucket_start(b + 1)},
                       {"loss", at_(sums.bucket_loss, b) / w}});
  }
  result["by_position"] = buckets;
  return result;
}

nlohmann::json evaluate_source(Run& run, const EvaluateOptions& options, const std::string& label,
                               const std::string& name, Network& network, Network* teacher) {
  std::vector<Row> rows;
  run.world.together("reading held-out source " + name, [&] {
    const auto files = expand_globs(run.recipe.data.sources.at(name).files);
    rows = eval_rows(files, run.tokenizer, options.row_length, options.num_rows(),
                     static_cast<uint64_t>(run.recipe.run.seed), *run.stores);
  });
  // What is too short to be shared; on all ranks alike.
  std::erase_if(
      rows, [&](const Row& row) { return static_cast<int64_t>(row.ids.size()) < options.context; });
  const auto context = static_cast<int>(options.context);
  Comm* const sequence = run.world.sequence_comm(context);
  const int64_t num_data_ranks = run.world.size() / context;
  const int64_t data_rank = run.world.rank() / context;
  const auto num_rows = static_cast<int64_t>(rows.size());
  std::vector<Row> mine;
  for (int64_t i = data_rank; i < num_rows; i += num_data_ranks) mine.push_back(std::move(rows[i]));
  const int64_t per_pass = run.world.device().is_cuda()
                               ? std::max<int64_t>(1, kEvaluationTokens / options.row_length)
                               : 1;
  Sums sums(num_rows);
  const int64_t most = (num_rows + num_data_ranks - 1) / num_data_ranks;  // rows of any rank
  const ItemClock clock;
  for (int64_t begin = 0; begin < most; begin += per_pass) {
    if (run.world.any(stop_requested())) throw Stopped{};
    run.metrics.progress({.stage = label,
                          .unit = "rows of " + name,
                          .step = begin,
                          .num_steps = most,
                          .seconds_left = clock.seconds_left(begin, most)});
    const int64_t left = static_cast<int64_t>(mine.size()) - begin;
    const std::span<const Row> group =
        left > 0 ? std::span<const Row>(mine).subspan(begin, std::min(per_pass, left))
                 : std::span<const Row>();
    Batch batch = group.empty() ? idle_batch({}, run.world.device())
                                : make_batch(group, {}, run.world.device());
    if (sequence) batch = make_shard(batch, *sequence);
    const VocabLoss value = row_losses(network, teacher, batch, options.sparse);
    add_losses(sums, {group, data_rank + begin * num_data_ranks, num_data_ranks,
                      batch.shard ? batch.shard->begin() : 0,
                      (teacher ? value.ce_T : value.loss_T).to(at::kDouble).cpu(),
                      teacher ? value.kl_T.to(at::kDouble).cpu() : at::Tensor{}});
  }
  sums.reduce(run.world);
  return source_result(name, sums, teacher != nullptr);
}

}  // namespace

namespace {

// Two evaluations of one model with equal identities give equal numbers.
nlohmann::json identity(const EvaluateOptions& o) {
  return {{"sources", o.sources},
          {"tokens", o.tokens},
          {"row_length", o.row_length},
          {"needle_lengths", o.needle_lengths},
          {"needle_depths", o.needle_depths},
          {"needles_per_cell", o.needles_per_cell},
          {"needle_source", o.needle_source}};
}

}  // namespace

nlohmann::json evaluate_model(Run& run, const EvaluateOptions& options, const std::string& label,
                              Network& network, bool is_teacher) {
  nlohmann::json result = {{"label", label},
                           {"model", is_teacher ? "teacher" : "student"},
                           {"options", identity(options)}};
  Network* teacher = !is_teacher && options.kl ? &run.teacher() : nullptr;
  for (const std::string& name : options.sources) {
    result["sources"][name] = evaluate_source(run, options, label, name, network, teacher);
  }
  if (!options.needle_lengths.empty()) evaluate_needles(run, options, label, network, result);
  return result;
}

void tell_evaluation(Run& run, nlohmann::json result, const nlohmann::json& place) {
  auto label = result.at("label").get<std::string>();
  if (place.contains("step")) label += fmt::format(" step {}", place.at("step").get<int64_t>());
  const nlohmann::json sources = result.value("sources", nlohmann::json::object());
  for (const auto& [name, s] : sources.items()) {
    run.metrics.note(
        fmt::format("{}: {} loss {:.4f}{}", label, name, s.at("loss").get<double>(),
                    s.contains("kl") ? fmt::format(", KL {:.4f}", s.at("kl").get<double>()) : ""));
  }
  std::map<int64_t, double> rates;  // by length, where JSON's keys are in the order of their text
  const nlohmann::json needle_rate = result.value("needle_rate", nlohmann::json::object());
  for (const auto& [length, rate] : needle_rate.items()) rates[std::stoll(length)] = rate;
  std::string needles;
  for (const auto& [length, rate] : rates) {
    needles += fmt::format("{} {:.2f} at {}", needles.empty() ? "" : ",", rate, length);
  }
  if (!needles.empty()) run.metrics.note(label + ": needles" + needles + " tokens");
  result.erase("tokens_seen");
  result.update(place);
  result.update({{"event", "evaluate"}, {"tokens", run.tokens_seen}});
  run.metrics.event(result);
}

void evaluate_and_record(Run& run, const EvaluateOptions& options, const std::string& label) {
  auto record = [&](const std::string& as, Network& network, bool is_teacher) {
    nlohmann::json result = evaluate_model(run, options, as, network, is_teacher);
    result["tokens_seen"] = run.tokens_seen;
    run.evaluations.push_back(result);
    tell_evaluation(run, result, {{"stage", label}});
  };
  bool teacher_done = false;
  for (const auto& e : run.evaluations) {
    teacher_done |= e.at("model") == "teacher" && e.at("options") == identity(options);
  }
  if (!teacher_done) record("teacher", run.teacher(), true);
  if (run.student) record(label, *run.student, false);
}

void evaluate_with_recipe(Run& run, const std::string& label) {
  if (const EvaluateOptions* options = evaluate_options(run.recipe)) {
    evaluate_and_record(run, *options, label);
  }
}

}  // namespace sala
