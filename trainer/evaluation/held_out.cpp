// Held-out losses, KL and agreement, shared out over the ranks row by row.
#include "trainer/evaluation/held_out.h"

#include <cmath>

#include "data/eval_rows.h"
#include "kernels/ops.h"
#include "kernels/vocabulary/likeliest.h"
#include "model/forward.h"
#include "trainer/batches.h"
#include "trainer/ranks/stop_signals.h"

namespace sala {

namespace {

constexpr int64_t kNumBuckets = 24;  // positions [0, 128), [128, 256), [256, 512), …

int64_t bucket_start(int64_t b) { return b == 0 ? 0 : int64_t{64} << b; }

// Columns of sums over tokens: of loss, KL, agreement with the teacher (1 or 0), each times its
// weight, and of weights.
enum Column : int64_t { kLoss, kKl, kTop1, kWeight, kNumColumns };

// What one rank adds up over its tokens; ranks add elementwise.
struct Sums {
  explicit Sums(int64_t num_rows) : rows(at::zeros({num_rows, kNumColumns}, at::kDouble)) {}
  at::Tensor rows;  // (held-out rows, columns)
  at::Tensor buckets = at::zeros({kNumBuckets, kNumColumns}, at::kDouble);

  void reduce(World& world) {
    for (at::Tensor* t : {&rows, &buckets}) {
      at::Tensor x = t->to(world.device());
      world.comm().all_reduce_sum(x);
      *t = x.cpu();
    }
  }
};

// Of each token (T), fp64 on the CPU; kl and top1 are undefined without a teacher.
struct TokenLosses {
  at::Tensor loss, kl, top1;
};

TokenLosses token_losses(Network& network, Network* teacher, const Batch& batch, bool sparse) {
  const at::NoGradGuard no_grad;
  const auto on_host = [](const at::Tensor& t) { return t.to(at::kDouble).cpu(); };
  const Model& model = network.model;
  at::Tensor x_teacher;
  if (teacher)
    x_teacher = hidden(teacher->model, teacher->parameters, teacher->model.env(batch, false));
  const at::Tensor x = hidden(model, network.parameters, model.env(batch, sparse));
  const Lease head = network.parameters.lease(model.head_parts());
  const at::Tensor& w = model.head_weight(head);
  const double scale = model.config().logit_scale;
  if (!teacher) {
    return {on_host(linear_cross_entropy(x, w, batch.targets, batch.loss_weight, scale).loss_T),
            {},
            {}};
  }
  const Lease teacher_head = teacher->parameters.lease(teacher->model.head_parts());
  const at::Tensor& w_teacher = teacher->model.head_weight(teacher_head);
  const VocabLoss value =
      linear_kl(x, w, scale, x_teacher, w_teacher, teacher->model.config().logit_scale,
                batch.targets, batch.loss_weight, DistillConfig{});
  const at::Tensor same = likeliest_ids(x, w).eq(likeliest_ids(x_teacher, w_teacher));
  return {on_host(value.ce_T), on_host(value.kl_T), on_host(same)};
}

// Losses of one pass: `first` is the number of the group's first row, `step` from row to row; this
// rank has the line's tokens from `begin` on.
struct Pass {
  std::span<const Row> group;
  int64_t first, step, begin;
};

int64_t bucket_of(int64_t position) {
  return position < 128 ? 0 : std::min<int64_t>(kNumBuckets - 1, std::ilogb(position) - 6);
}

void add_losses(Sums& sums, const Pass& pass, const TokenLosses& losses) {
  const auto values = [](const at::Tensor& t) {
    return t.defined() ? t.const_data_ptr<double>() : nullptr;
  };
  const double *loss = values(losses.loss), *kl = values(losses.kl), *top1 = values(losses.top1);
  int64_t line = -pass.begin;  // the row's first token in this rank's piece
  int64_t number = pass.first;
  for (const Row& row : pass.group) {
    const auto length = static_cast<int64_t>(row.ids.size());
    const int64_t from = std::max<int64_t>(0, -line);
    for (int64_t t = from; t < std::min(length, losses.loss.numel() - line); ++t) {
      const double w = row.loss_weight[t];
      if (w == 0) continue;
      for (double* to :
           {sums.rows.data_ptr<double>() + number * kNumColumns,
            sums.buckets.data_ptr<double>() + bucket_of(row.position[t]) * kNumColumns}) {
        to[kLoss] += w * loss[line + t];
        if (kl) to[kKl] += w * kl[line + t];
        if (top1) to[kTop1] += w * top1[line + t];
        to[kWeight] += w;
      }
    }
    line += length;
    number += pass.step;
  }
}

// Mean over tokens and its standard error over rows, of column `c` of the rows' sums.
std::pair<double, double> mean_and_error(const at::Tensor& rows, Column c) {
  const auto* values = rows.const_data_ptr<double>();
  double n = 0, sum = 0, weight = 0, of_means = 0, squares = 0;
  for (int64_t r = 0; r < rows.size(0); ++r) {
    const double* row = values + kNumColumns * r;
    if (row[kWeight] == 0) continue;
    const double mean = row[c] / row[kWeight];
    n += 1, sum += row[c], weight += row[kWeight], of_means += mean, squares += mean * mean;
  }
  const double mean = of_means / n;
  const double error = n < 2 ? 0 : std::sqrt(std::max(0.0, squares / n - mean * mean) / (n - 1));
  return {sum / weight, error};
}

nlohmann::json source_result(const std::string& name, const Sums& sums, bool with_teacher) {
  const double weight = sums.rows.select(1, kWeight).sum().item<double>();
  if (weight == 0) throw SharedError("held-out source " + name + " gave no token to predict");
  nlohmann::json result = {{"tokens", static_cast<int64_t>(weight)}};
  const auto tell = [&](const std::string& key, Column c) {
    const auto [mean, error] = mean_and_error(sums.rows, c);
    result[key] = mean;
    result[key + "_se"] = error;
  };
  tell("loss", kLoss);
  if (with_teacher) {
    tell("kl", kKl);
    tell("top1", kTop1);
  }
  result["by_position"] = nlohmann::json::array();
  for (int64_t b = 0; b < kNumBuckets; ++b) {
    const double* of = sums.buckets.const_data_ptr<double>() + b * kNumColumns;
    const double w = of[kWeight];
    if (w == 0) continue;
    nlohmann::json bucket = {{"from", bucket_start(b)},
                             {"to", bucket_start(b + 1)},
                             {"tokens", static_cast<int64_t>(w)},
                             {"loss", of[kLoss] / w}};
    if (with_teacher) bucket.update({{"kl", of[kKl] / w}, {"top1", of[kTop1] / w}});
    result["by_position"].push_back(bucket);
  }
  return result;
}

}  // namespace

nlohmann::json evaluate_source(Run& run, const EvaluateOptions& options, const std::string& label,
                               const std::string& name, Network& network, Network* teacher) {
  std::vector<Row> rows;
  read_together(run, "reading held-out source " + name, [&] {
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
    add_losses(sums,
               {group, data_rank + begin * num_data_ranks, num_data_ranks,
                batch.shard ? batch.shard->begin() : 0},
               token_losses(network, teacher, batch, options.sparse));
  }
  sums.reduce(run.world);
  return source_result(name, sums, teacher != nullptr);
}

}  // namespace sala
