// Keys, checks and arithmetic of what the looping stages share.
#include "trainer/recipe/stage_options.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include <fmt/format.h>

#include "kernels/fp8.h"
#include "trainer/recipe/field_values.h"
#include "trainer/recipe/name_pattern.h"
#include "trainer/recipe/recipe.h"
#include "trainer/stage.h"

namespace sala {

namespace {

void check_positive(const std::string& key, double value, const char* what, Problems& problems) {
  if (!(value > 0)) {
    problems.add(key, fmt::format("must be more than 0 ({}), but is {}", what, value));
  }
}

// "use 4096 or 6144": the multiples of `unit` next to `value`.
std::string nearest_multiples(int64_t value, int64_t unit) {
  const int64_t below = value / unit * unit;
  if (below == 0) return fmt::format("use {}", unit);
  return fmt::format("use {} or {}", below, below + unit);
}

}  // namespace

void Schedule::describe(Fields& fields, Need need) {
  fields.number("lr", lr, need,
                need == Need::kRequired
                    ? "Peak learning rate."
                    : "Peak learning rate. 0 = by the model's size, as HALO's table: 1e-4, 5e-5 "
                      "and 3e-5 for 1.7B, 4B and 8B parameters, 1e-4 (1.7B / parameters)^0.8 "
                      "between and beyond, at most 1e-3.");
  fields.choice("schedule", kind, {"constant", "cosine", "exponential", "wsd"}, Need::kOptional,
                "Learning rate after the warm-up: constant; cosine or exponential from lr to "
                "end_lr; wsd: constant, then linear to end_lr over the last decay_frac of the "
                "steps.");
  fields.number("end_lr", end_lr, Need::kOptional,
                "Learning rate at the end of the stage (cosine, exponential, wsd).");
  fields.count("warmup_steps", warmup_steps, Need::kOptional,
               "Steps of linear warm-up from 0 to lr. 0 = by warmup_frac.");
  fields.number("warmup_frac", warmup_frac, Need::kOptional,
                "Share of the stage's steps that warms up, where warmup_steps is 0. Optimizer "
                "moments start anew in every stage: without a warm-up its first steps can destroy "
                "a pretrained model.");
  fields.number("decay_frac", decay_frac, Need::kOptional,
                "wsd only: the share of the stage's steps, at its end, that decays.");
}

void Schedule::check(const std::string& path, int64_t num_steps, Problems& problems) const {
  if (!(lr >= 0)) problems.add(path + ".lr", fmt::format("must not be negative: {}", lr));
  if (!(end_lr >= 0)) {
    problems.add(path + ".end_lr", fmt::format("must not be negative: {}", end_lr));
  }
  if (kind == "constant" && end_lr != 0) {
    problems.add(path + ".end_lr", "has no effect with schedule: constant; remove it");
  } else if (problems.knows(path + ".lr") && lr > 0 && end_lr > lr) {
    problems.add(path + ".end_lr",
                 fmt::format("{} is above lr {}: schedules only go down", end_lr, lr));
  }
  if (kind == "exponential" && end_lr == 0) {
    problems.add(path + ".end_lr", "schedule: exponential needs an end_lr above 0");
  }
  if (!(decay_frac > 0 && decay_frac <= 1)) {
    problems.add(path + ".decay_frac", fmt::format("must be in (0, 1], but is {}", decay_frac));
  }
  if (!(warmup_frac >= 0 && warmup_frac < 1)) {
    problems.add(path + ".warmup_frac", fmt::format("must be in [0, 1), but is {}", warmup_frac));
  }
  if (num_steps > 0 && warmup_steps >= num_steps) {
    problems.add(path + ".warmup_steps",
                 fmt::format("{} steps of warm-up, but the stage has only {} steps (tokens / "
                             "batch_tokens)",
                             warmup_steps, num_steps));
  }
}

int64_t Schedule::num_warmup(int64_t num_steps) const {
  if (warmup_steps > 0) return warmup_steps;
  return static_cast<int64_t>(std::ceil(warmup_frac * static_cast<double>(num_steps)));
}

double Schedule::at(int64_t step, int64_t num_steps) const {
  const int64_t warmup = num_warmup(num_steps);
  if (step < warmup) return lr * static_cast<double>(step + 1) / static_cast<double>(warmup);
  if (kind == "constant") return lr;
  const double num_after = static_cast<double>(std::max<int64_t>(num_steps - warmup, 1));
  const double progress = std::min(1.0, static_cast<double>(step - warmup) / num_after);
  if (kind == "cosine") {
    return end_lr + (lr - end_lr) * 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  }
  if (kind == "exponential") return lr * std::pow(end_lr / lr, progress);
  const double num_decay = std::max(1.0, decay_frac * static_cast<double>(num_steps));  // wsd
  const double left = static_cast<double>(num_steps - step) / num_decay;
  return end_lr + (lr - end_lr) * std::clamp(left, 0.0, 1.0);
}

double safe_lr(int64_t num_parameters) {
  return std::min(1e-3, 1e-4 * std::pow(1.7e9 / static_cast<double>(num_parameters), 0.8));
}

void ParameterRule::describe(Fields& fields) {
  fields.text("match", match, Need::kRequired,
              "Regular expression, found anywhere in the tensor's name: . [a-z] \\d \\w ( ) * + ? "
              "^ $; \\. is a dot.");
  fields.number("lr_scale", lr_scale, Need::kOptional, "Factor on the learning rate.");
  fields.flag("freeze", freeze, Need::kOptional, "These tensors do not train.");
}

void OptimizerOptions::describe(Fields& fields, Need lr_need) {
  schedule.describe(fields, lr_need);
  fields.number("beta1", beta1, Need::kOptional, "AdamW: decay of the first moment.");
  fields.number("beta2", beta2, Need::kOptional, "AdamW: decay of the second moment.");
  fields.number("eps", eps, Need::kOptional, "AdamW: added to the root of the second moment.");
  fields.number("weight_decay", weight_decay, Need::kOptional,
                "AdamW: decoupled weight decay of matrices (norms and biases never decay).");
  fields.number("clip", clip, Need::kOptional,
                "Largest norm of the gradient; above it the gradient is scaled down. 0 = off. "
                "align clips each mixer by itself.");
  fields.list("rules", Need::kOptional,
              "Exceptions by tensor name; the first rule that matches a tensor holds.",
              rules.size(), [this](size_t index, Fields& element) {
                if (index >= rules.size()) rules.resize(index + 1);
                rules[index].describe(element);
              });
}

void OptimizerOptions::check(const std::string& path, int64_t num_steps, Problems& problems) const {
  schedule.check(path, num_steps, problems);
  for (const auto& [key, beta] : {std::pair{"beta1", beta1}, std::pair{"beta2", beta2}}) {
    if (!(beta >= 0 && beta < 1)) {
      problems.add(path + "." + key, fmt::format("must be in [0, 1), but is {}", beta));
    }
  }
  check_positive(path + ".eps", eps, "keeps the division finite", problems);
  for (const auto& [key, value] :
       {std::pair{"weight_decay", weight_decay}, std::pair{"clip", clip}}) {
    if (!(value >= 0)) {
      problems.add(path + "." + key, fmt::format("must not be negative: {}", value));
    }
  }
  for (size_t i = 0; i < rules.size(); ++i) {
    const std::string rule_path = fmt::format("{}.rules[{}]", path, i);
    try {
      NamePattern(rules[i].match);
    } catch (const std::runtime_error& error) {
      problems.add(rule_path + ".match", fmt::format("'{}' is not a pattern for names: {}",
                                                     shown(rules[i].match), error.what()));
    }
    if (!(rules[i].lr_scale >= 0)) {
      problems.add(rule_path + ".lr_scale",
                   fmt::format("must not be negative: {}", rules[i].lr_scale));
    }
  }
}

namespace {

bool matches_any(const ParameterRule& rule, const std::vector<Layout>& layouts) {
  const NamePattern pattern(rule.match);
  for (const Layout& layout : layouts) {
    for (const Entry& entry : layout.entries) {
      if (pattern.found_in(entry.name)) return true;
    }
  }
  return false;
}

}  // namespace

void OptimizerOptions::check_names(const std::string& path, const std::vector<Layout>& layouts,
                                   Problems& problems) const {
  for (size_t i = 0; i < rules.size(); ++i) {
    if (matches_any(rules[i], layouts)) continue;
    problems.add(fmt::format("{}.rules[{}].match", path, i),
                 fmt::format("'{}' is found in the name of no tensor (such as '{}')",
                             shown(rules[i].match), layouts.front().entries.front().name));
  }
}

bool OptimizerOptions::trains_any(const std::vector<Layout>& layouts) const {
  for (const Layout& layout : layouts) {
    for (const Entry& entry : layout.entries) {
      if (!rule_for(entry.name).freeze) return true;
    }
  }
  return false;
}

ParameterRule OptimizerOptions::rule_for(const std::string& tensor_name) const {
  for (const ParameterRule& rule : rules) {
    if (NamePattern(rule.match).found_in(tensor_name)) return rule;
  }
  return {};
}

TokenBudget TokenBudget::suited_to(int64_t width, bool roomy_gpu, int64_t num_data_ranks) const {
  constexpr int64_t kValues = int64_t{20} << 20, kMost = 32768;
  TokenBudget suited = *this;
  num_data_ranks = std::max<int64_t>(num_data_ranks, 1);  // too few are a problem of their own
  suited.most_rows = (rows_per_step() + num_data_ranks - 1) / num_data_ranks;
  while (roomy_gpu && 2 * suited.default_micro_tokens <= std::min(kMost, kValues / width)) {
    suited.default_micro_tokens *= 2;
  }
  return suited;
}

int64_t TokenBudget::micro_rows() const {
  const int64_t micro = micro_tokens > 0 ? micro_tokens : default_micro_tokens;
  return std::clamp<int64_t>(micro / row_length, 1, most_rows > 0 ? most_rows : rows_per_step());
}

int64_t TokenBudget::tokens_at_once(int64_t context) const {
  return (micro_rows() * row_length + context - 1) / context;
}

int64_t TokenBudget::num_micro_batches(int64_t num_data_ranks) const {
  const int64_t most_rows = (rows_per_step() + num_data_ranks - 1) / num_data_ranks;
  return (most_rows + micro_rows() - 1) / micro_rows();
}

void TokenBudget::describe(Fields& fields) {
  fields.count("tokens", tokens, Need::kRequired,
               "Tokens of the whole stage, rounded up to whole steps.", {1, kMostTokens});
  fields.count("row_length", row_length, Need::kRequired,
               "Tokens in one row: the longest context that the stage sees.", {2, kMostRowTokens});
  fields.count("batch_tokens", batch_tokens, Need::kRequired,
               "Tokens of one step, all ranks together: a multiple of row_length.",
               {1, kMostBatchTokens});
  fields.count("micro_tokens", micro_tokens, Need::kOptional,
               "Tokens that a rank runs at once: a multiple of row_length. 0 = as many rows as fit "
               "into 8K tokens, at least one; on GPUs 16K and 32K in models at most 1,280 and 640 "
               "wide, which 8K leave idle.",
               {0, kMostBatchTokens});
  fields.weights("data", data, Need::kRequired,
                 "The mixture: for each source its weight, the share of tokens drawn from it.");
}

bool TokenBudget::check(const std::string& path, const Recipe& recipe, Problems& problems) const {
  check_sources(path + ".data", data, recipe, problems);
  const auto known = [&](const char* key) { return problems.knows(path + "." + key); };
  bool usable = known("tokens") && known("batch_tokens") && known("row_length");
  const auto fail = [&](const char* key, const std::string& message) {
    problems.add(path + "." + key, message);
    usable = false;
  };
  if (!known("row_length")) return false;
  if (known("batch_tokens") && batch_tokens % row_length != 0) {
    fail("batch_tokens", fmt::format("{} is not a multiple of row_length {}: {}", batch_tokens,
                                     row_length, nearest_multiples(batch_tokens, row_length)));
  }
  if (!known("micro_tokens")) return false;
  if (micro_tokens % row_length != 0) {
    fail("micro_tokens", fmt::format("{} is not a multiple of row_length {}: {}", micro_tokens,
                                     row_length, nearest_multiples(micro_tokens, row_length)));
  } else if (known("batch_tokens") && micro_tokens > batch_tokens) {
    fail("micro_tokens",
         fmt::format("{} is more than batch_tokens {}", micro_tokens, batch_tokens));
  }
  return usable;
}

void check_sources(const std::string& key, const std::map<std::string, double>& data,
                   const Recipe& recipe, Problems& problems) {
  if (data.empty()) problems.add(key, "names no source");
  for (const auto& [name, weight] : data) {
    const std::string own_key = key + "." + name;
    if (problems.knows("data.sources") && !recipe.data.sources.contains(name)) {
      problems.add(own_key, no_such_source(recipe));
    }
    if (!(weight > 0)) {
      problems.add(own_key, fmt::format("weight must be more than 0, but is {}", weight));
    }
  }
}

std::string no_such_source(const Recipe& recipe) {
  std::string known;
  for (const auto& [name, options] : recipe.data.sources) {
    known += (known.empty() ? "" : ", ") + name;
  }
  return fmt::format("no such source in data.sources (there {}: {})",
                     recipe.data.sources.size() == 1 ? "is" : "are",
                     known.empty() ? "none" : shown(known));
}

Recompute LoopOptions::recompute_level() const {
  return recompute == "full" || offloads() ? Recompute::kFull
         : recompute == "selective"        ? Recompute::kSelective
                                           : Recompute::kNone;
}

Matmul LoopOptions::matmul_rule() const {
  return {matmul == "bf16" ? 0 : fp8_from, matmul == "fp8_all"};
}

void check_context(const std::string& path, int64_t context, int64_t num_ranks, int64_t row_length,
                   Problems& problems) {
  if (!problems.knows(path + ".context")) return;
  if (num_ranks % context != 0) {
    problems.add(path + ".context",
                 fmt::format("{} ranks cannot share sequences by {}: start a multiple of {} ranks, "
                             "or use a divisor of {}",
                             num_ranks, context, context, num_ranks));
  } else if (problems.knows(path + ".row_length") && context > row_length) {
    problems.add(path + ".context",
                 fmt::format("{} ranks cannot share a row of {} tokens", context, row_length));
  }
}

void LoopOptions::describe(Fields& fields, Stage& stage) {
  fields.count("context", context, Need::kOptional,
               "Ranks that share each sequence, every one a contiguous part of it: for rows that "
               "are too long for one device. A divisor of the number of ranks.",
               {1, 1 << 16});
  fields.count("save_every", stage.save_every, Need::kOptional,
               "Steps between checkpoints inside the stage; 0 = only at its end.");
  fields.count("evaluate_every", stage.evaluate_every, Need::kOptional,
               "Steps between evaluations inside the stage, by the options of the recipe's first "
               "evaluate stage; 0 = none. Not in align, where there is no hybrid yet.");
  fields.choice("on_nonfinite", on_nonfinite, {"skip", "stop"}, Need::kOptional,
                "When a loss or gradient is not finite on any rank, no parameter changes on any "
                "rank; then skip the step or stop the run.");
  fields.count("max_skips", max_skips, Need::kOptional,
               "Skipped steps in a row after which the run stops.");
  fields.choice("on_divergence", on_divergence, {"stop", "warn"}, Need::kOptional,
                "When the loss of three steps in a row is more than twice its lowest among the "
                "stage's first five steps and 1 above that: stop the run, or say so and go on.");
}

void LoopOptions::describe_model(Fields& fields) {
  fields.choice(
      "recompute", recompute, {"none", "selective", "full", "offload"}, Need::kOptional,
      "What a block's backward makes again instead of keeping it: selective: norms, "
      "rotations and gates, nearly free; full: products too, about a third more compute; "
      "softmax attention and its choice of blocks are never made again; offload: as full, "
      "and the inputs of blocks wait in host memory, two bytes for each of their numbers: "
      "for the longest rows.");
  fields.choice("attention", attention, {"sparse", "dense"}, Need::kOptional,
                "How the hybrid's sparse layers attend: sparse (documents of at least "
                "model.sparse.dense_len tokens; shorter ones are dense) or always dense.");
  fields.choice("matmul", matmul, {"bf16", "fp8", "fp8_all"}, Need::kOptional,
                "Products of the blocks with their matrices: bf16 (fp32 on a CPU), or FP8 (e4m3, a "
                "scale for each row) where they are large enough; the log says which. fp8: forward "
                "and to the gradient of their input; fp8_all: to the gradient of the weights too, "
                "which is still summed in fp32. Embedding, head, attention, norms, evaluations and "
                "the teacher stay as they are. FP8 takes a GPU with FP8 cores (compute capability "
                "8.9 and higher), or a CPU, "
                "which computes the same slowly.");
  fields.count(
      "fp8_from", fp8_from, Need::kOptional,
      "Least size in FP8: tokens at once, inputs and outputs of a product must all reach "
      "it and be multiples of 16: rounding costs small ones more than FP8 saves. An estimate.",
      {kFp8Multiple, 1 << 20});
}

}  // namespace sala
