// Keys, checks and arithmetic of a stage's tokens and of its loop.
#include "trainer/recipe/stage_options.h"

#include <algorithm>

#include <fmt/format.h>

#include "kernels/fp8.h"
#include "trainer/recipe/field_values.h"
#include "trainer/recipe/recipe.h"
#include "trainer/stage.h"

namespace sala {

namespace {

// "use 4096 or 6144": the multiples of `unit` next to `value`.
std::string nearest_multiples(int64_t value, int64_t unit) {
  const int64_t below = value / unit * unit;
  if (below == 0) return fmt::format("use {}", unit);
  return fmt::format("use {} or {}", below, below + unit);
}

}  // namespace

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

void check_context(const std::string& path, int64_t context, int64_t row_length,
                   Problems& problems) {
  if (!problems.knows(path + ".context") || !problems.knows(path + ".row_length")) return;
  if (context <= row_length) return;
  problems.add(path + ".context",
               fmt::format("{} ranks cannot share a row of {} tokens", context, row_length));
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
      "What a block's backward pass recomputes instead of keeping it: selective: norms, "
      "rotations and gates, nearly free; full: matrix products as well, about a third more "
      "compute; softmax attention and its choice of blocks are never recomputed; offload: as "
      "full, and the inputs of blocks wait in host memory, two bytes for each of their numbers: "
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
