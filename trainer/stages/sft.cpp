// Supervised fine-tuning: next-token loss on the tokens that a store's loss mask marks, as
// `data/prepare chat` marks the assistant's words. Conversations are packed into rows and see
// nothing of each other.
#include <fmt/format.h>

#include "data/source.h"
#include "trainer/stages/model_training.h"

namespace sala {

namespace {

// q_proj and k_proj of the layers with softmax attention, by tensor name; empty without such
// layers.
std::string kept_queries_and_keys(const ModelConfig& config) {
  std::string layers;
  for (size_t l = 0; l < config.mixers.size(); ++l) {
    if (config.mixers[l] == Mixer::kLightning) continue;
    layers += (layers.empty() ? "" : "|") + std::to_string(l);
  }
  if (layers.empty()) return "";
  return "^model\\.layers\\.(" + layers + ")\\.self_attn\\.[qk]_proj\\.";
}

bool has_masks(const Source& source) {
  bool all = true;
  source.for_each_document([&](int64_t document, int64_t) {
    all = source.has_loss_mask(document);
    return all;
  });
  return all;
}

class SftStage : public ModelTraining {
 public:
  std::string type() const override { return "sft"; }

  void describe(Fields& fields) override {
    ModelTraining::describe(fields);
    fields.choice("preserve_qk", preserve_qk_, {"none", "freeze"}, Need::kOptional,
                  "freeze: queries and keys (q_proj, k_proj) of the layers with softmax attention "
                  "do not train, whatever `rules` says; fine-tuning them costs long recall.");
  }

  void check_inputs(const StageInputs& inputs, Problems& problems) override {
    ModelTraining::check_inputs(inputs, problems);
    for (const auto& [name, weight] : budget_.data) {
      const auto found = inputs.sources.find(name);
      if (found == inputs.sources.end()) continue;
      const Source& source = found->second;
      if (has_masks(source)) continue;
      problems.add(path + ".data." + name,
                   fmt::format("expected stores with a loss_mask, which says what the assistant "
                               "says, but a store of it (the first is {}) has none: make them with "
                               "`data/prepare chat`, or learn from every token in a train stage",
                               source.first_path()));
    }
  }

 protected:
  std::unique_ptr<Loss> make_loss(Run&) override { return std::make_unique<NextTokenLoss>(); }

  OptimizerOptions optimizer_options(const ModelConfig& config) const override {
    OptimizerOptions options = ModelTraining::optimizer_options(config);
    const std::string kept = kept_queries_and_keys(config);
    if (preserve_qk_ == "freeze" && !kept.empty()) {
      options.rules.insert(options.rules.begin(), {.match = kept, .freeze = true});
    }
    return options;
  }

 private:
  std::string preserve_qk_ = "none";
};

}  // namespace

std::unique_ptr<Stage> make_sft_stage() { return std::make_unique<SftStage>(); }

}  // namespace sala
