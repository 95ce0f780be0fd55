// Keys, their arithmetic, and the plan of each method.
#include "trainer/scores/options.h"

#include <fmt/format.h>

#include <algorithm>

#include "data/source.h"
#include "model/kept_tensors.h"
#include "trainer/planning/flops.h"
#include "trainer/planning/plan.h"
#include "trainer/recipe/layer_choice.h"
#include "trainer/recipe/stage_options.h"
#include "trainer/scores/order_file.h"
#include "trainer/scores/rows.h"

namespace sala {

namespace {

// Whether a document has as many tokens. Looks at the first million only: with none among those it
// is left to the stage.
bool may_hold_row(const Source& source, int64_t row_length) {
  constexpr int64_t kMostLooks = 1'000'000;
  const int64_t looks = std::min(source.num_documents(), kMostLooks);
  for (int64_t d = 0; d < looks; ++d) {
    if (source.document_length(d) >= row_length) return true;
  }
  return looks < source.num_documents();
}

// One layer swapped at a time: of all blocks above it, half of the model on average.
void plan_swaps(const PlanContext& context, int64_t num_rows, int64_t row_length, StagePlan& plan) {
  const ModelConfig& c = context.source;
  plan.steps = num_rows * c.num_layers;
  plan.activation_bytes +=
      static_cast<double>(compute_bytes(context)) * row_length * c.width * (c.num_layers + 1);
  const double head = head_flops(c) * row_length * num_rows * c.num_layers;
  plan.flops += plan.flops * c.num_layers / 2.0 + 2 * head;
}

// The teacher forward; both mixers of every block forward, again, and backward to their input.
void plan_gates(const PlanContext& context, int64_t num_steps, int64_t row_length,
                StagePlan& plan) {
  const ModelConfig& c = context.source;
  const Mixer attention = c.mixers[0];
  const PassShape shape{row_length, compute_bytes(context), false};
  const ModelConfig& linear = context.hybrid;
  plan.steps = num_steps;
  const auto whole = [&](const ModelConfig& config, Mixer mixer) {
    return static_cast<double>(kept_bytes(config, mixer, shape, Recompute::kNone) +
                               backward_moment_bytes(config, mixer, shape, Recompute::kNone));
  };
  plan.activation_bytes +=
      static_cast<double>(c.num_layers * kept_bytes(c, attention, shape, Recompute::kFull)) +
      whole(c, attention) + whole(linear, Mixer::kLightning);
  const double mixers = static_cast<double>(plan.tokens) * c.num_layers *
                        mixer_flops(linear, Mixer::kLightning, row_length, false);
  plan.flops = 4 * plan.flops + 3 * mixers;
}

// A list must reach as far as the choice does; beyond it layers are equal. (Of another run's scores
// every layer has one.)
void check_length(const std::vector<double>& scores, const LayerChoice& choice,
                  const std::string& key, Problems& problems) {
  const auto num_layers = static_cast<int64_t>(scores.size());
  int64_t known = 0;
  for (int64_t l = 0; l < num_layers; ++l) {
    known += scores[static_cast<size_t>(l)] != 0 || choice.forces(l, num_layers);
  }
  if (choice.layers.empty() && known < std::min(choice.keep, num_layers)) {
    problems.add(key, fmt::format("orders {} layers with those that are kept anyway, but swap "
                                  "keeps {}",
                                  known, choice.keep));
  }
}

}  // namespace

void ScoreOptions::describe(Fields& fields) {
  fields.choice(
      "method", method, {"kl", "halo", "retrieval", "gates", "uniform", "file"}, Need::kOptional,
      "kl: KL to the teacher when one layer is swapped, on plain text and on recall; "
      "halo: recall lost over next-token accuracy lost when one layer is swapped; retrieval: "
      "where the source's own attention looks when planted facts are asked; gates: "
      "one gate per layer between both mixers, all learned together; uniform: even "
      "distances; file: as `file` says.");
  fields.weights(
      "data", data, Need::kOptional,
      "Sources of the documents; weights are shares of the documents (all but uniform and "
      "file).");
  fields.count("documents", documents, Need::kOptional,
               "Rows that are scored (kl, halo, retrieval) or learned from in turn (gates).",
               {1, 1 << 20});
  fields.count("row_length", row_length, Need::kOptional,
               "Tokens per row (all but uniform and file).", {8, kMostRowTokens});
  fields.count("recall_span", recall_span, Need::kOptional,
               "Tokens at each row's end that only recall predicts: a copy of an earlier span "
               "(kl), or planted facts of 8 tokens asked again (halo, retrieval, gates).",
               {2, kMostRowTokens});
  fields.count("steps", steps, Need::kOptional, "Updates of the gates (gates).", {1, 1 << 20});
  fields.count("step_rows", step_rows, Need::kOptional,
               "Rows of one update, all ranks together (gates).", {1, 1 << 20});
  fields.number("lr", lr, Need::kOptional,
                "Learning rate of the gates' logits, falling to 0 in a straight line (gates).");
  fields.path("file", file, Need::kOptional,
              "Layers in order of importance, the most important first, as text or a JSON list; or "
              "another run's scores.h5 (file).");
}

void ScoreOptions::check(const Recipe& recipe, const std::string& path, Problems& problems) const {
  if (!problems.knows(path + ".method")) return;
  if ((method == "file") == file.empty() && problems.knows(path + ".file")) {
    problems.add(path + ".file", method == "file" ? "method: file needs the file's path"
                                                  : "is read by method: file alone");
  }
  if (!measures()) return;
  if (data.empty()) {
    problems.add(path + ".data", "method: " + method + " needs data: {source: weight}");
  } else {
    check_sources(path + ".data", data, recipe, problems);
  }
  if (problems.knows(path + ".row_length") && problems.knows(path + ".recall_span")) {
    if (recall_span > row_length / 4) {
      problems.add(path + ".recall_span", fmt::format("{} must be at most a quarter of row_length "
                                                      "{}",
                                                      recall_span, row_length));
    } else if (method != "kl" && recall_span < kFactTokens) {
      problems.add(path + ".recall_span",
                   fmt::format("{} has no room for a fact of {} tokens", recall_span, kFactTokens));
    }
  }
  if (method != "gates") return;
  if (problems.knows(path + ".lr") && !(lr > 0)) {
    problems.add(path + ".lr", fmt::format("{} must be more than 0", lr));
  }
  if (problems.knows(path + ".step_rows") && problems.knows(path + ".documents") &&
      step_rows > documents) {
    problems.add(path + ".step_rows",
                 fmt::format("{} rows in a step, but documents is {}", step_rows, documents));
  }
}

void ScoreOptions::check_inputs(const std::string& path, const StageInputs& inputs,
                                Problems& problems) const {
  if (method == "file" && inputs.context != nullptr) {
    try {
      const std::vector<double> scores = read_order_file(file, inputs.context->source.num_layers);
      check_length(scores, inputs.recipe.layer_choice(), path + ".file", problems);
    } catch (const std::runtime_error& error) {
      problems.add(path + ".file", error.what());
    }
  }
  if (!measures()) return;
  bool any = false, all_read = true;
  for (const auto& [name, weight] : data) {
    const auto source = inputs.sources.find(name);
    all_read = all_read && source != inputs.sources.end();
    any = any || (source != inputs.sources.end() && may_hold_row(source->second, row_length));
  }
  if (all_read && !any) {
    problems.add(path + ".row_length",
                 fmt::format("no document of its sources has {} tokens: use a smaller row_length "
                             "or longer documents",
                             row_length));
  }
}

StagePlan ScoreOptions::plan(const PlanContext& context) const {
  if (!measures()) return {};
  const int64_t num_rows = method == "gates" ? steps * step_rows : documents;
  StagePlan plan = plan_forward(context, num_rows * row_length, row_length, false);
  plan.batch_bytes = 16.0 * static_cast<double>(documents * row_length);
  const PlannedParameters mixers = plan_aligned(context);
  plan.weights_bytes += mixers.weights + mixers.optimizer / 3;
  if (method == "gates") {
    plan_gates(context, steps, row_length, plan);
  } else if (method == "retrieval") {
    plan.steps = documents * context.source.num_layers;
  } else {
    plan_swaps(context, documents, row_length, plan);
  }
  return plan;
}

}  // namespace sala
