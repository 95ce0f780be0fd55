// Recipe keys that the looping stages share: learning-rate schedule, optimizer with rules by tensor
// name, token budget, and what the loop does besides steps. The keys lie flat in the stage:
// `- distill: {tokens: 8M, row_length: 2K, batch_tokens: 32K, lr: 2e-3, schedule: cosine, …}`.
// `path` of every check is the stage's own ("stages[2].distill"); one problem per contradiction.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/saved.h"
#include "model/weights/layout.h"
#include "model/weights/products.h"
#include "trainer/recipe/fields.h"

namespace sala {

class Stage;
struct Recipe;

// Learning rate by step. Linear warm-up to `lr` over warmup_steps or, when that is 0, over the
// first warmup_frac of all steps; then by `kind`:
//   constant     lr
//   cosine       half a cosine from lr down to end_lr
//   exponential  lr * (end_lr / lr)^progress
//   wsd          lr, then linear to end_lr over the last decay_frac of all steps
struct Schedule {
  std::string kind = "cosine";
  double lr = 0;  // 0 = by the size of the model, see safe_lr
  double end_lr = 0;
  int64_t warmup_steps = 0;
  double warmup_frac = 0.05;
  double decay_frac = 0.1;

  // `need`: whether a stage of this type has no lr of its own when the recipe names none.
  void describe(Fields& fields, Need need);
  void check(const std::string& path, int64_t num_steps, Problems& problems) const;
  int64_t num_warmup(int64_t num_steps) const;  // steps
  // `step` counts from 0: the step about to be taken. After the last step: the end of the schedule.
  double at(int64_t step, int64_t num_steps) const;
};

// A peak rate that distillation of a pretrained model stands: HALO's 1e-4, 5e-5 and 3e-5 for 1.7B,
// 4B and 8B parameters (arXiv:2601.22156, table of stage 2), which lie on 1e-4 (1.7e9 / N)^0.8;
// at most 1e-3, where tiny models train.
double safe_lr(int64_t num_parameters);

// What is different for the tensors whose name holds a match of `match` (name_pattern.h).
struct ParameterRule {
  std::string match;
  double lr_scale = 1.0;
  bool freeze = false;
  void describe(Fields& fields);
};

// AdamW (kernels/ops.h).
struct OptimizerOptions {
  Schedule schedule;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.0;
  double clip = 1.0;  // norm of the gradient; 0 = off
  std::vector<ParameterRule> rules;

  void describe(Fields& fields, Need lr_need);
  void check(const std::string& path, int64_t num_steps, Problems& problems) const;
  // Rules that match none of the layouts' tensors.
  void check_names(const std::string& path, const std::vector<Layout>& layouts,
                   Problems& problems) const;
  // Where the rules leave nothing to train.
  void check_trains(const std::string& path, const std::vector<Layout>& layouts,
                    Problems& problems) const;
  // The first rule that matches; lr_scale 1, not frozen, when none does.
  ParameterRule rule_for(const std::string& tensor_name) const;
};

struct TokenBudget {
  int64_t tokens = 0;        // of the whole stage; rounded up to whole steps
  int64_t row_length = 0;    // T of one row
  int64_t batch_tokens = 0;  // tokens of one step, all ranks together
  // Tokens a rank runs at once; 0 = whole rows up to default_micro_tokens, at least one.
  int64_t micro_tokens = 0;
  // No keys: by suited_to().
  int64_t default_micro_tokens = 8192;
  int64_t most_rows = 0;               // that a rank has of a step; 0 = all of them
  std::map<std::string, double> data;  // source name: weight

  int64_t rows_per_step() const { return batch_tokens / row_length; }
  int64_t num_steps() const { return tokens / batch_tokens + (tokens % batch_tokens != 0); }
  // For a model of `width` on one of `num_data_ranks` (the ranks of a split sequence count as one):
  // a GPU is busy with as many values as 8K tokens of a wide model have, and a small one has no
  // room for more.
  TokenBudget suited_to(int64_t width, bool roomy_gpu, int64_t num_data_ranks) const;
  int64_t micro_rows() const;  // rows a rank runs at once, at most rows_per_step()
  int64_t tokens_at_once(int64_t context) const;  // of a rank that shares its rows with others
  // Of every rank in a step: as many as the rank with most rows needs.
  int64_t num_micro_batches(int64_t num_data_ranks) const;

  void describe(Fields& fields);
  // False when the arithmetic above cannot be used (something is unread or no multiple).
  bool check(const std::string& path, const Recipe& recipe, Problems& problems) const;
};

// A problem for every source in `data` that the recipe lacks and for every weight that is not > 0.
void check_sources(const std::string& key, const std::map<std::string, double>& data,
                   const Recipe& recipe, Problems& problems);
std::string no_such_source(const Recipe& recipe);  // the message

// Whether `context` ranks can share a row; it is the stage's key of that name.
void check_context(const std::string& path, int64_t context, int64_t row_length,
                   Problems& problems);

struct LoopOptions {
  int64_t context = 1;                 // ranks that share each sequence
  std::string recompute = "none";      // none | selective | full (model/saved.h) | offload
  std::string attention = "sparse";    // sparse | dense: of the hybrid's sparse layers
  std::string matmul = "bf16";         // bf16 | fp8 | fp8_all (model/weights/products.h)
  int64_t fp8_from = 2048;             // least side of a product in FP8
  std::string on_nonfinite = "skip";   // skip | stop: a step whose loss or gradient is not finite
  int64_t max_skips = 10;              // skipped steps in a row that stop the run
  std::string on_divergence = "stop";  // stop | warn: the loss left where it began, see LossWatch

  Recompute recompute_level() const;
  bool offloads() const { return recompute == "offload"; }  // trainer/input_offload.h
  Matmul matmul_rule() const;
  // context, save_every and evaluate_every (members of Stage), on_nonfinite, max_skips,
  // on_divergence.
  void describe(Fields& fields, Stage& stage);
  // recompute, attention, matmul and fp8_from: stages that train the whole model.
  void describe_model(Fields& fields);
};

}  // namespace sala
