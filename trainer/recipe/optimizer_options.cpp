// Learning rates, AdamW's settings and their rules by tensor name (stage_options.h).
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "trainer/recipe/field_values.h"
#include "trainer/recipe/name_pattern.h"
#include "trainer/recipe/stage_options.h"

namespace sala {

namespace {

void check_positive(const std::string& key, double value, const char* what, Problems& problems) {
  if (!(value > 0)) {
    problems.add(key, fmt::format("must be more than 0 ({}), but is {}", what, value));
  }
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

void OptimizerOptions::check_trains(const std::string& path, const std::vector<Layout>& layouts,
                                    Problems& problems) const {
  for (const Layout& layout : layouts) {
    for (const Entry& entry : layout.entries) {
      if (!rule_for(entry.name).freeze) return;
    }
  }
  problems.add(path + ".rules", "every tensor is frozen: nothing would train");
}

ParameterRule OptimizerOptions::rule_for(const std::string& tensor_name) const {
  for (const ParameterRule& rule : rules) {
    if (NamePattern(rule.match).found_in(tensor_name)) return rule;
  }
  return {};
}

}  // namespace sala
