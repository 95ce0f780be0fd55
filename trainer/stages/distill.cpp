// Distillation: KL between the teacher's and the hybrid's next-token distributions, all tokens:
// full ones, or with the teacher cut to its likeliest ids, whose words a cache may keep for later
// runs.
#include <fmt/format.h>

#include <algorithm>

#include "data/source.h"
#include "trainer/checks/input_identity.h"
#include "trainer/checks/target_folder.h"
#include "trainer/planning/plan.h"
#include "trainer/recipe/amount_text.h"
#include "trainer/stages/model_training.h"
#include "trainer/teacher/cut.h"

namespace sala {

namespace {

class DistillStage : public ModelTraining {
 public:
  std::string type() const override { return "distill"; }

  void describe(Fields& fields) override {
    ModelTraining::describe(fields);
    fields.number("temperature", config_.temperature, Need::kOptional,
                  "Softens both distributions; the KL is multiplied by its square.");
    fields.number("ce_weight", config_.ce_weight, Need::kOptional,
                  "Share of next-token loss in the loss, 0 to 1; the rest is KL.");
    fields.weights("ce_weights", ce_weights_, Need::kOptional,
                   "The same for the tokens of single sources, instead of ce_weight: 1 where the "
                   "teacher cannot say what is to be learnt, as in recall text.");
    fields.count("topk", cut_.topk, Need::kOptional,
                 "Cuts the teacher to its likeliest ids of each token, and one bucket for all "
                 "others; 0 = the whole vocabulary.",
                 {0, 1 << 20});
    fields.choice("topk_values", cut_.values, {"fp16", "fp32"}, Need::kOptional,
                  "Type that a cut teacher's log-probabilities are rounded to, kept or not.");
    fields.path("teacher_cache", cut_.cache, Need::kOptional,
                "Folder that keeps what the cut teacher says of every row. What is missing there "
                "is asked and added; with nothing missing the stage loads no teacher. Needs topk.");
  }

  void check(const Recipe& recipe, const std::string& path, Problems& problems) const override {
    ModelTraining::check(recipe, path, problems);
    if (!(config_.temperature > 0)) {
      problems.add(path + ".temperature",
                   fmt::format("must be more than 0, but is {}", config_.temperature));
    }
    if (!(config_.ce_weight >= 0 && config_.ce_weight <= 1)) {
      problems.add(path + ".ce_weight",
                   fmt::format("must be between 0 and 1, but is {}", config_.ce_weight));
    }
    check_ce_weights(path + ".ce_weights", problems);
    if (cut_.cache.empty()) return;
    if (cut_.topk == 0) {
      problems.add(path + ".teacher_cache",
                   "keeps a teacher that is cut: name topk, the ids kept of each token (64 is "
                   "usual)");
    }
    for (const auto& stage : recipe.stages) {
      const auto* other = dynamic_cast<const DistillStage*>(stage.get());
      if (!other || other == this || other->cut_.cache.empty()) continue;
      if (!lies_in(other->cut_.cache, cut_.cache)) continue;
      problems.add(path + ".teacher_cache",
                   fmt::format("stage {} keeps its teacher there too, on other rows: each needs a "
                               "folder of its own",
                               other->name));
    }
  }

  void check_inputs(const StageInputs& inputs, Problems& problems) override {
    ModelTraining::check_inputs(inputs, problems);
    if (!inputs.context) return;
    const int64_t vocab_size = inputs.context->source.vocab_size;
    if (cut_.topk > vocab_size) {
      problems.add(path + ".topk", fmt::format("{} is more than the {} ids of the vocabulary",
                                               cut_.topk, vocab_size));
    }
    if (!cut_.cache.empty()) look_at_cache(inputs, problems);
  }

  StagePlan plan(const PlanContext& context) const override {
    StagePlan plan = ModelTraining::plan(context);
    if (cut_.topk == 0) return plan;
    // On the device: a micro-batch's words as the loss wants them; with a cache, those of a step as
    // they are stored, there or on the host.
    const TopkFormat format = format_for(context.source.vocab_size);
    const auto ranks = static_cast<double>(context.num_ranks);
    const double step_tokens = static_cast<double>(budget_.batch_tokens) / ranks;
    const TokenBudget budget = suited_budget(context);
    plan.batch_bytes += 12.0 * static_cast<double>(budget.micro_rows() * budget.row_length) *
                        static_cast<double>(cut_.topk);
    // Beside logits and gradient, softmax at temperature one: three chunks of logits, not 2.5.
    if (context.cuda && config_.temperature != 1 && wants_ce()) {
      plan.activation_bytes += 0.5 / 2.5 * vocabulary_workspace_bytes(context);
    }
    if (cut_.cache.empty()) return plan;
    plan.batch_bytes += 2 * step_tokens * static_cast<double>(format.bytes_per_token());
    const int64_t missing = num_stage_tokens() - tokens_held_;
    if (!plan.advice.empty()) plan.advice += "\n";
    const double bytes =
        static_cast<double>(missing) * static_cast<double>(format.bytes_per_token());
    plan.advice +=
        fmt::format("stage {}: {} holds the teacher's words on {} of {} tokens, {} bytes each: {}",
                    name, cut_.cache, tokens_held_, num_stage_tokens(), format.bytes_per_token(),
                    needs_teacher() ? bytes_text(bytes) + " to come" : "no teacher is loaded");
    plan.writes = {{path + ".teacher_cache", cut_.cache, "teacher's words for " + name, bytes}};
    return plan;
  }

  int64_t longest_row() const override { return budget_.row_length; }

  void begin(Run& run) override {
    if (!cut_.cache.empty()) open_cache(run);
    ModelTraining::begin(run);
  }

 protected:
  std::unique_ptr<Loss> make_loss(Run& run) override {
    Network* teacher = needs_teacher() ? &run.teacher() : nullptr;
    if (cut_.topk == 0) return std::make_unique<DistillLoss>(*teacher, mix());
    return std::make_unique<TopkDistillLoss>(
        std::make_unique<CutTeacher>(run.world, teacher, std::move(cache_),
                                     format_for(run.source.vocab_size), config_.temperature,
                                     budget_.row_length),
        mix());
  }
  bool needs_teacher() const override { return tokens_held_ < num_stage_tokens(); }

 private:
  void check_ce_weights(const std::string& key, Problems& problems) const {
    for (const auto& [source, share] : ce_weights_) {
      if (!budget_.data.contains(source)) {
        problems.add(key + "." + source, "is no source of the stage's data");
      }
      if (!(share >= 0 && share <= 1)) {
        problems.add(key + "." + source, fmt::format("must be between 0 and 1, but is {}", share));
      }
    }
  }

  double ce_weight_of(const std::string& source) const {
    const auto own = ce_weights_.find(source);
    return own != ce_weights_.end() ? own->second : config_.ce_weight;
  }

  bool wants_ce() const {
    return std::any_of(budget_.data.begin(), budget_.data.end(),
                       [&](const auto& source) { return ce_weight_of(source.first) > 0; });
  }

  LossMix mix() const {
    std::vector<double> shares;  // in the order of source ids, that of source_specs()
    for (const auto& [source, weight] : budget_.data) shares.push_back(ce_weight_of(source));
    // Batches of one source do not name it.
    if (shares.size() == 1) return LossMix({config_.temperature, shares.front(), {}});
    if (!wants_ce()) return LossMix({config_.temperature, 0, {}});
    return ce_weights_.empty() ? LossMix(config_) : LossMix(config_, shares);
  }

  int64_t num_stage_tokens() const { return budget_.num_steps() * budget_.batch_tokens; }

  TopkFormat format_for(int64_t vocab_size) const {
    return {cut_.topk, vocab_size, cut_.values == "fp16", ""};
  }

  // As far as it can be told without reading weights and rows.
  void look_at_cache(const StageInputs& inputs, Problems& problems) {
    const std::string key = path + ".teacher_cache";
    std::map<std::string, std::string> fingerprints;
    for (const auto& [source, weight] : budget_.data) {
      const auto found = inputs.sources.find(source);
      if (found == inputs.sources.end()) return;  // it has a problem of its own
      fingerprints[source] = found->second.fingerprint();
    }
    const ModelConfig& source = inputs.context->source;
    auto facts = cache_facts(inputs.recipe, budget_, cut_, config_.temperature, source.vocab_size,
                             fingerprints);
    facts["teacher"]["config"] = hash_of_file(inputs.recipe.source + "/config.json");
    CacheListing listing = list_cache(cut_.cache);
    if (const std::string other = why_other_cache(cut_.cache, listing.facts, facts);
        !other.empty()) {
      return problems.add(key, other);
    }
    tokens_held_ =
        CacheReader(cut_.cache, std::move(listing)).index().num_tokens_before(num_stage_tokens());
    if (!inputs.writes || !needs_teacher()) return;
    if (const std::string why_not = why_not_writable(cut_.cache); !why_not.empty()) {
      problems.add(key, why_not);
    }
  }

  void open_cache(Run& run) {
    nlohmann::json facts;
    run.world.together("teacher cache " + cut_.cache, [&] {
      std::map<std::string, std::string> fingerprints;
      for (const SourceSpec& spec : source_specs(run.recipe, budget_.data)) {
        fingerprints[spec.name] = Source(spec, run.tokenizer, *run.stores).fingerprint();
      }
      facts = cache_facts(run.recipe, budget_, cut_, config_.temperature, run.source.vocab_size,
                          fingerprints);
      facts["teacher"] = teacher_facts(run.inputs);
    });
    cache_ = std::make_unique<TeacherCache>(run.world, cut_.cache, facts, num_stage_tokens());
    tokens_held_ = cache_->num_tokens_held();
    run.metrics.note(
        fmt::format("stage {}: {} holds the teacher's words on {} of {} tokens: {}", name,
                    cut_.cache, tokens_held_, num_stage_tokens(),
                    needs_teacher() ? "the others are asked and added" : "no teacher is loaded"));
  }

  DistillConfig config_;
  std::map<std::string, double> ce_weights_;  // by source
  TopkOptions cut_;
  // Of the stage's tokens, in the cache: as check_inputs() finds it, for the plan of the first
  // rank; from begin() on as it was opened, on all ranks.
  int64_t tokens_held_ = 0;
  std::unique_ptr<TeacherCache> cache_;  // from begin() until the loss takes it
};

}  // namespace

std::unique_ptr<Stage> make_distill_stage() { return std::make_unique<DistillStage>(); }

}  // namespace sala
