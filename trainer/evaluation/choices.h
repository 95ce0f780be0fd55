// Multiple choice by likelihood, as lm-evaluation-harness's `multiple_choice` tasks define it: the
// sum of log-likelihoods of a choice's tokens after its context. acc: the share of questions whose
// likeliest choice is the answer; acc_norm: likeliest by log-likelihood per character. Standard
// errors are of a mean (sample standard deviation / sqrt(count)); chance is the mean of 1 /
// choices.
#pragma once

#include "trainer/evaluation/evaluate.h"

namespace sala {

// Adds "choices": {SET: {acc, acc_se, acc_norm, acc_norm_se, count, chance}} to `result`; a set
// with several tasks gives one entry for each, SET/TASK. Questions are shared out over the ranks,
// many of them in one pass.
void evaluate_choices(Run& run, const EvaluateOptions& options, const std::string& label,
                      Network& network, nlohmann::json& result);

}  // namespace sala
