// Picks the layers that keep softmax attention and builds the hybrid: everything outside the mixers
// is the source's, lightning layers take their aligned mixers, kept layers the source's projections
// without RoPE and with a gate that leaves the output's scale alone. No forward pass, nothing
// random.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <algorithm>
#include <optional>
#include <set>

#include "model/convert.h"
#include "model/weights/part_buffer.h"
#include "trainer/evaluation/evaluate.h"
#include "trainer/planning/flops.h"
#include "trainer/planning/plan.h"
#include "trainer/recipe/layer_choice.h"
#include "trainer/run.h"
#include "trainer/stages/one_step.h"

namespace sala {

namespace {

class SwapStage : public OneStepStage {
 public:
  std::string type() const override { return "swap"; }

  void describe(Fields& fields) override {
    fields.count("keep", choice_.keep, Need::kOptional,
                 "Layers that keep softmax attention, chosen by score; 0 with `layers`.",
                 {0, 1 << 20});
    fields.counts("layers", choice_.layers, Need::kOptional,
                  "The kept layers by number, instead of choosing by score.", {0, 1 << 20});
    fields.flag("force_ends", choice_.force_ends, Need::kOptional,
                "Always keep the first and the last layer (loaders need a sparse layer 0).");
  }

  void check(const Recipe& recipe, const std::string& path, Problems& problems) const override {
    if (!problems.clean(path + ".layers") || !problems.knows(path + ".keep")) return;
    if ((choice_.keep > 0) == !choice_.layers.empty()) {
      problems.add(path + ".keep", choice_.keep > 0
                                       ? "give either keep (how many) or layers (which), not both"
                                       : "give keep (how many layers) or layers (which)");
    }
    if (choice_.keep == 1 && choice_.force_ends) {
      problems.add(path + ".keep", "1 cannot hold both ends: use 2 or more, or force_ends: false");
    }
    const std::set<int64_t> different(choice_.layers.begin(), choice_.layers.end());
    if (different.size() < choice_.layers.size()) {
      problems.add(path + ".layers", "names a layer twice: give each once");
    }
    const bool exports = std::any_of(recipe.stages.begin(), recipe.stages.end(),
                                     [](const auto& stage) { return stage->type() == "export"; });
    if (!exports) return;
    if (!choice_.layers.empty() && !different.contains(0)) {
      problems.add(path + ".layers",
                   "must hold layer 0: those who load the exported model count tokens there");
    }
    if (choice_.layers.empty() && !choice_.force_ends && problems.knows(path + ".force_ends")) {
      problems.add(path + ".force_ends",
                   "false may drop layer 0, which the export needs: leave it true, or name the "
                   "layers");
    }
  }

  void check_inputs(const StageInputs& inputs, Problems& problems) override {
    if (inputs.context == nullptr) return;
    const int64_t num_layers = inputs.context->source.num_layers;
    if (choice_.keep > num_layers) {
      problems.add(path + ".keep",
                   fmt::format("keeps {} layers, but the source has {}", choice_.keep, num_layers));
    }
    for (int64_t layer : choice_.layers) {
      if (layer < num_layers) continue;
      problems.add(path + ".layers", fmt::format("{} is no layer of the source, whose last is {}",
                                                 layer, num_layers - 1));
      break;
    }
  }

  bool needs_full_source() const override { return true; }
  bool evaluates() const override { return true; }
  bool needs_mixers() const override { return true; }
  bool needs_scores() const override { return choice_.layers.empty(); }

  StagePlan plan(const PlanContext& context) const override {
    StagePlan plan = plan_forward(context, 0, 1, true);
    plan.steps = 1;
    return plan;
  }

  const LayerChoice* layer_choice() const override { return &choice_; }

  void end(Run& run) override { run.aligned.reset(); }

 protected:
  void work(Run& run) override {
    const std::vector<int64_t> kept = choose(run);
    say_doubts(run, kept);
    build(run, kept);
    run.metrics.event(
        {{"event", "swap"}, {"stage", name}, {"kept", kept}, {"within_noise", is_in_doubt(run)}});
    run.metrics.note(fmt::format("kept layers: {}", fmt::join(kept, ", ")));
    evaluate_with_recipe(run, name);
  }

 private:
  std::vector<int64_t> choose(const Run& run) const {
    const int64_t L = run.source.num_layers;
    if (choice_.num_kept() > L) {
      throw std::runtime_error(
          fmt::format("stage {}: keep {} of only {} layers", name, choice_.num_kept(), L));
    }
    std::vector<double> scores(static_cast<size_t>(L), 0.0);
    if (choice_.layers.empty()) scores = scores_of(run);
    std::vector<int64_t> kept = chosen_layers(choice_, scores);
    if (kept.back() >= L || std::adjacent_find(kept.begin(), kept.end()) != kept.end()) {
      throw std::runtime_error(fmt::format("stage {}: layers [{}] must be different and below {}",
                                           name, fmt::join(kept, ", "), L));
    }
    return kept;
  }

  // By layer.
  std::vector<double> scores_of(const Run& run) const {
    if (run.scores.is_null()) {
      throw std::runtime_error(fmt::format(
          "stage {}: `keep` chooses by score, but no score stage ran before; add one (method: "
          "uniform costs nothing) or name the layers",
          name));
    }
    std::vector<double> scores(static_cast<size_t>(run.source.num_layers));
    for (const auto& s : run.scores.at("layers")) {
      scores.at(s.at("layer").get<size_t>()) = s.at("score").get<double>();
    }
    return scores;
  }

  bool is_in_doubt(const Run& run) const {
    return choice_.layers.empty() && run.scores.value("within_noise", false);
  }

  // Layers that their scores alone would have kept, had the ends not been forced; and whether the
  // scores are sure of those that they chose.
  void say_doubts(Run& run, const std::vector<int64_t>& kept) const {
    if (!choice_.layers.empty()) return;
    if (is_in_doubt(run)) {
      run.metrics.note("the scores' choice is within noise: " +
                       run.scores.value("note", std::string()));
    }
    if (!choice_.force_ends) return;
    std::vector<int64_t> displaced = by_score(scores_of(run));
    displaced.resize(static_cast<size_t>(choice_.keep));
    std::erase_if(displaced, [&](int64_t layer) {
      return std::find(kept.begin(), kept.end(), layer) != kept.end();
    });
    if (displaced.empty()) return;
    run.metrics.note(fmt::format(
        "force_ends keeps the first and the last layer in place of layer(s) {}, whose scores are "
        "higher; loaders need layer 0",
        fmt::join(displaced, ", ")));
  }

  // A part at a time, from the source's own values: the masters never saw the compute type.
  void build(Run& run, const std::vector<int64_t>& kept) const {
    if (!run.aligned) {
      throw std::runtime_error(
          fmt::format("stage {}: no aligned mixers; put an align stage before it", name));
    }
    run.make_student(hybrid_config(run.source, kept, run.recipe.model.sparse,
                                   run.recipe.model.qk_norm == "keep"));
    const ModelConfig& c = run.student->model.config();
    Parameters& student = run.student->parameters;
    const auto from_aligned = [&](size_t p) {
      const std::optional<int64_t> layer = Model::layer_of_mixer(p, c.num_layers);
      return layer && c.mixers[*layer] == Mixer::kLightning;
    };
    PartBuffer sources(run.world.device()), starts(run.world.device());
    std::vector<const char*> origins(student.num_parts(), "source");
    run.read_source(
        Model(run.source).layouts(), [&](size_t p) { return !from_aligned(p); },
        [&](size_t p, Weights& read) {
          const Weights source = sources.copy_of(read, at::kFloat);
          Weights part = starts.weights(student.layout(p), at::kFloat);
          if (Model::layer_of_mixer(p, c.num_layers)) {
            start_sparse_mixer(c, source, part);
            origins[p] = "source, RoPE dropped; o_gate 0, o_proj doubled";
          } else {
            copy_weights(source, part);
          }
          student.set_whole(p, part.flat);
        });
    for (int64_t l = 0; l < c.num_layers; ++l) {  // whole() is a collective
      const size_t p = Model::mixer_part(l), mixer = static_cast<size_t>(l);
      if (!from_aligned(p)) continue;
      Weights part = starts.weights(student.layout(p), at::kFloat);
      copy_weights(Weights(run.aligned->layout(mixer), run.aligned->whole(mixer)), part);
      student.set_whole(p, part.flat);
      origins[p] = "aligned lightning mixer";
    }
    nlohmann::json origin = nlohmann::json::array();
    for (size_t p = 0; p < student.num_parts(); ++p) {
      for (const Entry& entry : student.layout(p)->entries) {
        origin.push_back({{"tensor", entry.name}, {"from", origins[p]}});
      }
    }
    run.metrics.event({{"event", "origin"}, {"stage", name}, {"tensors", origin}});
  }

  LayerChoice choice_;
};

}  // namespace

std::unique_ptr<Stage> make_swap_stage() { return std::make_unique<SwapStage>(); }

}  // namespace sala
