// Held-out losses and KL, shared out over the ranks row by row.
#include "trainer/evaluation/evaluate.h"

#include <fmt/format.h>
#include <cmath>
#include <map>

#include "data/eval_rows.h"
#include "kernels/ops.h"
#include "trainer/batches.h"
#include "trainer/evaluation/needles.h"
#include "trainer/ranks/stop_signals.h"

namespace sala {

namespace {

constexpr int64_t kNumBuckets = 24;      // positions [0, 128), [128, 256), [256, 512), …
constexpr int64_t kMicroTokens = 16384;  // at most, per forward pass, when rows are short

int64_t bucket_start(int64_t b) { return b == 0 ? 0 : int64_t{64} << b; }

// What one rank adds up over its rows; all fields are sums, so ranks add elementwise.
struct Sums {
  at::Tensor rows = at::zeros({6}, at::kDouble);  // rows, Σ row mean, Σ its square, the same of KL
  at::Tensor tokens = at::zeros({3}, at::kDouble);  // Σ loss, Σ kl, Σ weight
  at::Tensor bucket_loss = at::zeros({kNumBuckets}, at::kDouble);
  at::Tensor bucket_weight = at::zeros({kNumBuckets}, at::kDouble);

  void reduce(World& world) {
    for (at::Tensor* t : {&rows, &tokens, &bucket_loss, &bucket_weight}) {
      at::Tensor x = t->to(world.device());
      world.comm().all_reduce_sum(x);
      *t = x.cpu();
    }
  }
};

VocabLoss row_losses(const Model& model, const Model* teacher, const Batch& batch, bool sparse) {
  at::NoGradGuard no_grad;
  const at::Tensor x = model.hidden(model.env(batch, sparse));
  const double scale = model.config().logit_scale;
  if (!teacher) {
    return linear_cross_entropy(x, model.head_weight(), batch.targets, batch.loss_weight, scale);
  }
  const at::Tensor x_teacher = teacher->hidden(teacher->env(batch, false));
  return linear_kl(x, model.head_weight(), scale, x_teacher, teacher->head_weight(),
                   teacher->config().logit_scale, batch.targets, batch.loss_weight,
                   DistillConfig{});
}

void add_row(Sums& sums, const Row& row, const double* loss, const double* kl) {
  double loss_sum = 0, kl_sum = 0, weight = 0;
  double* bucket_loss = sums.bucket_loss.data_ptr<double>();
  double* bucket_weight = sums.bucket_weight.data_ptr<double>();
  for (size_t t = 0; t < row.ids.size(); ++t) {
    const double w = row.loss_weight[t];
    if (w == 0) continue;
    loss_sum += w * loss[t];
    if (kl) kl_sum += w * kl[t];
    weight += w;
    const int64_t b = row.position[t] < 128
                          ? 0
                          : std::min<int64_t>(kNumBuckets - 1, std::ilogb(row.position[t]) - 6);
    bucket_loss[b] += w * loss[t];
    bucket_weight[b] += w;
  }
  if (weight == 0) return;
  const double mean = loss_sum / weight, kl_mean = kl_sum / weight;
  sums.rows += at::tensor({1.0, mean, mean * mean, kl_mean, kl_mean * kl_mean, 0.0}, at::kDouble);
  sums.tokens += at::tensor({loss_sum, kl_sum, weight}, at::kDouble);
}

double standard_error(double n, double sum, double squares) {
  if (n < 2) return 0;
  const double mean = sum / n;
  return std::sqrt(std::max(0.0, squares / n - mean * mean) / (n - 1));
}

nlohmann::json source_result(const std::string& name, const Sums& sums, bool with_kl) {
  auto at_ = [](const at::Tensor& t, int64_t i) { return t[i].item<double>(); };
  const double n = at_(sums.rows, 0), weight = at_(sums.tokens, 2);
  if (weight == 0) throw SharedError("held-out source " + name + " gave no token to predict");
  nlohmann::json result = {{"loss", at_(sums.tokens, 0) / weight},
                           {"loss_se", standard_error(n, at_(sums.rows, 1), at_(sums.rows, 2))},
                           {"tokens", static_cast<int64_t>(weight)}};
  if (with_kl) {
    result["kl"] = at_(sums.tokens, 1) / weight;
    result["kl_se"] = standard_error(n, at_(sums.rows, 3), at_(sums.rows, 4));
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
                               const std::string& name, const Model& model,
                               const Model* teacher) {
  std::vector<Row> rows;
  run.world.together("reading held-out source " + name, [&] {
    const auto files = expand_globs(run.recipe.data.sources.at(name).files);
    rows = eval_rows(files, run.tokenizer, options.row_length, options.num_rows(),
                     static_cast<uint64_t>(run.recipe.run.seed), *run.stores);
  });
  std::vector<Row> mine;
  for (size_t i = run.world.rank(); i < rows.size(); i += run.world.size()) {
    mine.push_back(std::move(rows[i]));
  }
  const size_t per_pass =
      run.world.device().is_cuda() ? std::max<int64_t>(1, kMicroTokens / options.row_length) : 1;
  Sums sums;
  const size_t most = (rows.size() + run.world.size() - 1) / run.world.size();  // rows of any rank
  const ItemClock clock;
  for (size_t begin = 0; begin < most; begin += per_pass) {
    if (run.world.any(stop_requested())) throw Stopped{};
    const auto done = static_cast<int64_t>(begin), all = static_cast<int64_t>(most);
    run.metrics.progress({.stage = label,
                          .unit = "rows of " + name,
                          .step = done,
                          .num_steps = all,
                          .seconds_left = clock.seconds_left(done, all)});
    if (begin >= mine.size()) continue;
    const auto group = std::span(mine).subspan(begin, std::min(per_pass, mine.size() - begin));
    const Batch batch = make_batch(group, 1.0, run.world.device());
    const VocabLoss value = row_losses(model, teacher, batch, options.sparse);
    const at::Tensor loss = (teacher ? value.ce_T : value.loss_T).to(at::kDouble).cpu();
    const at::Tensor kl = teacher ? value.kl_T.to(at::kDouble).cpu() : at::Tensor{};
    int64_t t = 0;
    for (const Row& row : group) {
      add_row(sums, row, loss.const_data_ptr<double>() + t,
              teacher ? kl.const_data_ptr<double>() + t : nullptr);
      t += static_cast<int64_t>(row.ids.size());
    }
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
                              const Model& model, bool is_teacher) {
  nlohmann::json result = {{"label", label},
                           {"model", is_teacher ? "teacher" : "student"},
                           {"options", identity(options)}};
  const Model* teacher = !is_teacher && options.kl ? &run.teacher() : nullptr;
  for (const std::string& name : options.sources) {
    result["sources"][name] = evaluate_source(run, options, label, name, model, teacher);
  }
  if (!options.needle_lengths.empty()) evaluate_needles(run, options, label, model, result);
  return result;
}

void tell_evaluation(Run& run, nlohmann::json result, const nlohmann::json& place) {
  auto label = result.at("label").get<std::string>();
  if (place.contains("step")) label += fmt::format(" step {}", place.at("step").get<int64_t>());
  const nlohmann::json sources = result.value("sources", nlohmann::json::object());
  for (const auto& [name, s] : sources.items()) {
    run.metrics.note(fmt::format(
        "{}: {} loss {:.4f}{}", label, name, s.at("loss").get<double>(),
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
  auto record = [&](const std::string& as, const Model& model, bool is_teacher) {
    nlohmann::json result = evaluate_model(run, options, as, model, is_teacher);
    result["tokens_seen"] = run.tokens_seen;
    run.evaluations.push_back(result);
    tell_evaluation(run, result, {{"stage", label}});
  };
  bool teacher_done = false;
  for (const auto& e : run.evaluations) {
    teacher_done |= e.at("model") == "teacher" && e.at("options") == identity(options);
  }
  if (!teacher_done) record("teacher", run.teacher(), true);
  if (run.student.model) record(label, *run.student.model, false);
}

void evaluate_with_recipe(Run& run, const std::string& label) {
  if (const EvaluateOptions* options = evaluate_options(run.recipe)) {
    evaluate_and_record(run, *options, label);
  }
}

}  // namespace sala
