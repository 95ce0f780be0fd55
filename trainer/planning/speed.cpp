// Measured shares of the peak, and traffic counted from layouts.
#include "trainer/planning/speed.h"

#include <algorithm>
#include <array>
#include <cmath>

#include <fmt/format.h>

#include "trainer/planning/flops.h"
#include "trainer/planning/plan.h"
#include "trainer/recipe/field_values.h"
#include "trainer/recipe/recipe.h"

namespace sala {
namespace {

struct Shares {
  double width, align, distill, train;
};
constexpr std::array<Shares, 3> kMeasured{{{576, 0.25, 0.32, 0.23},     // SmolLM2-135M
                                           {2048, 0.56, 0.53, 0.47},    // 1.7B
                                           {4096, 0.60, 0.53, 0.52}}};  // 8.2B and its 9.5B hybrid

// Weights of a model, and gradients where it trains, once each.
struct Travels {
  double weights = 0, gradients = 0;  // bytes
};
Travels travels(const PlanContext& context, double parameters) {
  return {parameters * static_cast<double>(compute_bytes(context)), parameters * 4};
}

int64_t num_data_ranks(const PlanContext& context, const Traffic& traffic) {
  return std::max<int64_t>(1, context.num_ranks / traffic.context);
}

RowShares row_shares(const PlanContext& context, const Traffic& traffic) {
  return {traffic.budget.rows_per_step(), traffic.budget.row_length,
          num_data_ranks(context, traffic)};
}

int64_t num_micro_batches(const PlanContext& context, const Traffic& traffic) {
  return traffic.budget.num_micro_batches(num_data_ranks(context, traffic));
}

// The rest of a buffer that is shared out evenly over `ranks`.
double from_others(int64_t ranks) {
  return static_cast<double>(ranks - 1) / static_cast<double>(ranks);
}

struct Bytes {
  double node = 0, network = 0;
  // Between `ranks` neighbours, or ranks that lie `apart` of each other.
  void add(double bytes, int64_t ranks, int64_t apart = 1) {
    (ranks * apart <= kNodeRanks ? node : network) += bytes;
  }
};

// `passes`: how often each micro-batch needs a unit's weights.
void add_trained(const PlanContext& context, double parameters, double passes, double micros,
                 Bytes& bytes) {
  const Travels t = travels(context, parameters);
  const std::string& sharding = context.recipe.run.sharding;
  if (sharding == "none") {  // an all-reduce
    return bytes.add(2 * t.gradients * from_others(context.num_ranks), context.num_ranks);
  }
  const int64_t group = shard_ranks(context), copies = context.num_ranks / group;
  const double inside =
      sharding == "zero3" ? micros * (passes * t.weights + t.gradients) : t.weights + t.gradients;
  bytes.add(inside * from_others(group), group);
  const double share = t.gradients / static_cast<double>(group);
  bytes.add(2 * share * from_others(copies), copies, group);
}

void add_lent(const PlanContext& context, double parameters, double micros, Bytes& bytes) {
  if (context.recipe.run.sharding != "zero3") return;
  const int64_t group = shard_ranks(context);
  bytes.add(micros * travels(context, parameters).weights * from_others(group), group);
}

void add_sequence(const PlanContext& context, const Traffic& traffic, double micros, Bytes& bytes) {
  const ModelConfig& c = context.hybrid;
  const auto line = static_cast<double>(traffic.budget.micro_rows() * traffic.budget.row_length);
  const auto ranks = static_cast<double>(traffic.context);
  const auto value = static_cast<double>(compute_bytes(context));
  double of_one = 0;
  for (Mixer mixer : c.mixers) {
    // Keys and values in both passes, their gradients in fp32; or states, both ways.
    const auto keys = 2.0 * static_cast<double>(c.kv_size(mixer));
    const auto state = 4.0 * static_cast<double>(c.num_heads * c.head_size * c.head_size);
    of_one += mixer == Mixer::kLightning ? 2 * state * (ranks - 1)
                                         : line * keys * (2 * value + 4) * (ranks - 1) / ranks;
  }
  bytes.add(micros * of_one, traffic.context);
}

double compute_seconds(const PlanContext& context, const std::string& stage_type,
                       const StagePlan& plan, double peak_flops) {
  // The step ends with the rank that has most rows.
  const double all_peaks =
      peak_flops * static_cast<double>(context.num_ranks) / plan.shares.slowdown();
  if (!context.cuda) return plan.flops / all_peaks;  // which are of fp32
  const double share = measured_share(stage_type, context.source.width);
  return ((plan.flops - plan.fp32_flops) / share + plan.fp32_flops / kFp32Share) / all_peaks;
}

double traffic_seconds(const PlanContext& context, const StagePlan& plan) {
  if (!context.cuda) return 0;
  return static_cast<double>(plan.steps) *
         (plan.node_bytes / kNodeRate + plan.network_bytes / kNetworkRate);
}

}  // namespace

double measured_share(const std::string& stage_type, int64_t width) {
  const auto of = [&](const Shares& s) {
    return stage_type == "align" ? s.align : stage_type == "distill" ? s.distill : s.train;
  };
  const auto w = static_cast<double>(width);
  if (w <= kMeasured.front().width) return of(kMeasured.front()) * w / kMeasured.front().width;
  for (size_t i = 1; i < kMeasured.size(); ++i) {
    const Shares &a = kMeasured[i - 1], &b = kMeasured[i];
    if (w > b.width) continue;
    const double t = std::log(w / a.width) / std::log(b.width / a.width);
    return of(a) + t * (of(b) - of(a));
  }
  return of(kMeasured.back());
}

void plan_traffic(const PlanContext& context, const Traffic& traffic, StagePlan& plan) {
  const auto micros = static_cast<double>(num_micro_batches(context, traffic));
  Bytes bytes;
  add_trained(context, static_cast<double>(num_parameters(context.hybrid)), 2, micros, bytes);
  if (traffic.teacher) {
    add_lent(context, static_cast<double>(num_parameters(context.source)), micros, bytes);
  }
  add_sequence(context, traffic, micros, bytes);
  plan.node_bytes = bytes.node;
  plan.network_bytes = bytes.network;
  plan.shares = row_shares(context, traffic);
}

void plan_align_traffic(const PlanContext& context, const Traffic& traffic, StagePlan& plan) {
  const auto micros = static_cast<double>(num_micro_batches(context, traffic));
  const auto mixers = static_cast<double>(mixer_parameters(context.hybrid, Mixer::kLightning) *
                                          context.source.num_layers);
  Bytes bytes;
  add_trained(context, mixers, 1, micros, bytes);
  add_lent(context, static_cast<double>(num_parameters(context.source)), micros, bytes);
  add_sequence(context, traffic, micros, bytes);
  plan.node_bytes = bytes.node;
  plan.network_bytes = bytes.network;
  plan.shares = row_shares(context, traffic);
}

double stage_seconds(const PlanContext& context, const std::string& stage_type,
                     const StagePlan& plan, double peak_flops) {
  return std::max(compute_seconds(context, stage_type, plan, peak_flops),
                  traffic_seconds(context, plan));
}

std::string uneven_rows_advice(const PlanContext& context, const std::string& stage_type,
                               const std::string& stage_name, const StagePlan& plan,
                               double peak_flops) {
  const RowShares& shares = plan.shares;
  StagePlan even = plan;
  even.shares = {};
  const double cost = stage_seconds(context, stage_type, plan, peak_flops) /
                          stage_seconds(context, stage_type, even, peak_flops) -
                      1;
  if (!(cost > 0.02)) return "";
  const auto batch = [&](int64_t rows) {
    return fmt::format("{} ({} rows)", format_count(rows * shares.row_length), rows);
  };
  const int64_t above = shares.most() * shares.ranks, below = above - shares.ranks;
  return fmt::format(
      "stage {}: {} rows a step do not divide among {}: one that has {} is waited for, {:.0f} % of "
      "the time; batch_tokens: {}{} would divide",
      stage_name, shares.rows,
      shares.ranks == context.num_ranks
          ? fmt::format("{} ranks", shares.ranks)
          : fmt::format("{} groups of {} ranks", shares.ranks, context.num_ranks / shares.ranks),
      shares.most(), 100 * cost / (1 + cost), below > 0 ? batch(below) + " or " : "", batch(above));
}

bool network_bound(const PlanContext& context, const std::string& stage_type, const StagePlan& plan,
                   double peak_flops) {
  return traffic_seconds(context, plan) > compute_seconds(context, stage_type, plan, peak_flops);
}

}  // namespace sala
