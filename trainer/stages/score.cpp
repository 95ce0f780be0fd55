// How much each layer matters. `kl`: swap one layer for its aligned lightning mixer and measure the
// KL to the teacher, on plain text and on tokens that can only be predicted by recall: every row
// ends with a copy of an earlier span of itself. Score = plain KL / its mean over layers + recall
// KL / its mean. `uniform`: layers at even distances, the control.
//
// One teacher pass per document keeps every block's input, so a swapped layer runs only the blocks
// above it. A work item is (document, layer). Finished items are appended to
// RUN/scores/items-<rank>.jsonl as they come and survive a kill; documents are shared out over the
// ranks, and no result depends on how many.

#include <fmt/format.h>
#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "data/eval_rows.h"
#include "data/files/hash.h"
#include "data/files/hdf5_file.h"
#include "kernels/ops.h"
#include "model/block.h"
#include "model/convert.h"
#include "model/forward.h"
#include "model/weights/parts.h"
#include "trainer/journal/own_files.h"
#include "trainer/planning/flops.h"
#include "trainer/planning/plan.h"
#include "trainer/recipe/stage_options.h"
#include "trainer/run.h"
#include "trainer/stages/score_items.h"

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

class ScoreStage : public Stage {
 public:
  std::string type() const override { return "score"; }

  void describe(Fields& fields) override {
    fields.choice("method", method_, {"kl", "uniform"}, Need::kOptional,
                  "kl: KL to the teacher when one layer is swapped, on plain text and on recall; "
                  "uniform: even distances.");
    fields.weights("data", data_, Need::kOptional,
                   "Sources of the documents; weights are shares of the documents (kl).");
    fields.count("documents", documents_, Need::kOptional, "Rows that are scored (kl).",
                 {1, 1 << 20});
    fields.count("row_length", row_length_, Need::kOptional, "Tokens per scored row (kl).",
                 {8, kMostRowTokens});
    fields.count("recall_span", recall_span_, Need::kOptional,
                 "Tokens of the span that each row repeats at its end (kl).", {2, kMostRowTokens});
  }

  void check(const Recipe& recipe, const std::string& path, Problems& problems) const override {
    if (!problems.knows(path + ".method") || method_ != "kl") return;
    if (data_.empty()) {
      problems.add(path + ".data", "method: kl needs data: {source: weight}");
    } else {
      check_sources(path + ".data", data_, recipe, problems);
    }
    if (problems.knows(path + ".row_length") && recall_span_ > row_length_ / 4) {
      problems.add(
          path + ".recall_span",
          fmt::format("{} must be at most a quarter of row_length {}", recall_span_, row_length_));
    }
  }

  // A row is a window of one document.
  void check_inputs(const StageInputs& inputs, Problems& problems) const override {
    if (method_ != "kl") return;
    bool any = false, all_read = true;
    for (const auto& [name, weight] : data_) {
      const auto source = inputs.sources.find(name);
      all_read = all_read && source != inputs.sources.end();
      any = any || (source != inputs.sources.end() && may_hold_row(source->second, row_length_));
    }
    if (all_read && !any) {
      problems.add(path + ".row_length",
                   fmt::format("no document of its sources has {} tokens: use a smaller row_length "
                               "or longer documents",
                               row_length_));
    }
  }

  bool needs_full_source() const override { return true; }
  bool needs_mixers() const override { return method_ == "kl"; }

  StagePlan plan(const PlanContext& context) const override {
    if (method_ != "kl") return {};
    const ModelConfig& c = context.source;
    StagePlan plan = plan_forward(context, documents_ * row_length_, row_length_, false);
    plan.steps = documents_ * c.num_layers;
    plan.batch_bytes = 16.0 * static_cast<double>(documents_ * row_length_);
    const PlannedParameters mixers = plan_aligned(context);
    plan.weights_bytes += mixers.weights + mixers.optimizer / 3;
    plan.activation_bytes +=
        static_cast<double>(compute_bytes(context)) * row_length_ * c.width * (c.num_layers + 1);
    const double head = head_flops(c) * row_length_ * documents_ * c.num_layers;
    plan.flops += plan.flops * c.num_layers / 2.0 + 2 * head;
    return plan;
  }

  void begin(Run& run) override {
    if (method_ == "kl") {
      run.teacher();  // reading it is collective; not every rank has an item
      mixer_model_ =
          std::make_unique<Model>(hybrid_config(run.source, {}, run.recipe.model.sparse, false));
    }
    num_layers_ = run.source.num_layers;
    num_ranks_ = run.world.size();
    num_documents_ = documents_;
    next_ = 0;
  }

  bool advance(Run& run) override {
    if (method_ == "uniform") {
      if (run.scores.is_object() && run.scores.value("stage", "") == name) return false;
      score_uniformly(run);
      return true;
    }
    if (next_ == 0) {
      open(run);
      clock_.emplace();
    }
    if (next_ >= num_steps()) return false;
    const int64_t document = next_ / num_layers_ * num_ranks_ + run.world.rank();
    const int64_t layer = next_ % num_layers_;
    const bool mine = document < num_documents_ && !finished_.count({document, layer});
    // Leases are collective: where one rank has something to do, all pass through the same units.
    if (run.world.any(mine)) {
      run.world.together("scoring", [&] {
        const ScoreItem item = score(run, std::min(document, num_documents_ - 1), layer);
        if (mine) log_->append(item, key_);
      });
    }
    ++next_;
    run.metrics.progress({.stage = name,
                          .unit = "scores",
                          .step = next_,
                          .num_steps = num_steps(),
                          .seconds_left = clock_->seconds_left(next_, num_steps())});
    return true;
  }

  void end(Run& run) override {
    if (method_ == "kl") combine(run);
    run.world.together("scores", [&] {
      if (run.world.rank() == 0) write_scores(run);
    });
    log_.reset();
    rows_.clear();
    inputs_.clear();
    finished_.clear();
    mixer_model_.reset();
    final_.reset();
    batch_ = {};
    document_ = -1;
  }

  // Items are their own record: there is nothing to keep in a checkpoint.
  void save(StateWriter& out) const override { out.json("score", {{"method", method_}}); }
  void load(StateReader&) override {}
  int64_t longest_row() const override { return method_ == "kl" ? row_length_ : 0; }
  int64_t step() const override { return next_; }
  int64_t num_steps() const override {
    return method_ == "kl" ? (num_documents_ + num_ranks_ - 1) / num_ranks_ * num_layers_ : 1;
  }

 private:
  void open(Run& run) {
    run.world.together("score stage", [&] {
      if (!run.aligned) {
        throw std::runtime_error(fmt::format(
            "stage {}: method: kl swaps in aligned mixers; put an align stage before it", name));
      }
      read_rows(run);
    });
    const std::string mixers = mixers_hash(run);  // a collective: not where one rank may throw
    run.world.together("score stage", [&] {
      // Items belong to this recipe, these rows and these mixers.
      const nlohmann::json identity = {
          {"stage", name},        {"rows", row_length_},         {"documents", num_documents_},
          {"span", recall_span_}, {"seed", run.recipe.run.seed}, {"tokens", rows_hash()},
          {"mixers", mixers}};
      key_ = xxh3_64_hex(identity.dump().data(), identity.dump().size());
      log_ = std::make_unique<ScoreLog>(run.folder + "/scores", run.world.rank());
    });
    run.world.barrier();
    run.world.together("score stage", [&] {
      for (const ScoreItem& item : log_->read(key_, num_documents_, num_layers_)) {
        finished_.insert({item.document, item.layer});
      }
    });
  }

  std::string rows_hash() const {
    Xxh3Stream stream(Xxh3Width::k64);
    for (const Row& row : rows_) stream.update(row.ids.data(), row.ids.size() * sizeof(row.ids[0]));
    return stream.hex();
  }

  static std::string mixers_hash(Run& run) {
    Xxh3Stream stream(Xxh3Width::k64);
    for (size_t l = 0; l < run.aligned->num_parts(); ++l) {
      const at::Tensor cpu = run.aligned->whole(l).cpu();
      stream.update(cpu.const_data_ptr<float>(), cpu.numel() * sizeof(float));
    }
    return stream.hex();
  }

  // Rows of all sources, by weight, whole rows from single documents.
  void read_rows(Run& run) {
    double total = 0;
    for (const auto& [_, weight] : data_) total += weight;
    for (const auto& [source, weight] : data_) {
      const int64_t wanted = std::llround(documents_ * weight / total);
      const auto files = expand_globs(run.recipe.data.sources.at(source).files);
      auto rows = eval_rows(files, run.tokenizer, row_length_, std::max<int64_t>(wanted, 1),
                            static_cast<uint64_t>(run.recipe.run.seed), *run.stores);
      for (Row& row : rows) {
        if (static_cast<int64_t>(row.ids.size()) == row_length_ && row.doc_starts.size() == 1) {
          rows_.push_back(std::move(row));
        }
      }
    }
    if (rows_.empty()) {
      throw std::runtime_error(
          fmt::format("stage {}: no document has {} tokens; use a smaller "
                      "row_length or longer documents",
                      name, row_length_));
    }
    num_documents_ = std::min<int64_t>(documents_, static_cast<int64_t>(rows_.size()));
  }

  // The row with its last recall_span tokens replaced by a copy of an earlier span.
  std::vector<int64_t> recall_ids(const Run& run, int64_t document) const {
    const Row& row = rows_[document];
    std::vector<int64_t> ids(row.ids.begin(), row.ids.end());
    const int64_t plain = row_length_ - recall_span_;
    const std::string salt = fmt::format("{}/{}", run.recipe.run.seed, document);
    const int64_t start =
        static_cast<int64_t>(xxh3_64(salt) % static_cast<uint64_t>(plain - recall_span_ + 1));
    std::copy_n(ids.begin() + start, recall_span_, ids.begin() + plain);
    return ids;
  }

  ScoreItem score(Run& run, int64_t document, int64_t layer) {
    at::NoGradGuard no_grad;
    Network& teacher = run.teacher();
    const Model& model = teacher.model;
    if (document != document_) cache_document(run, document);
    const Env env = model.env(batch_, false), mixer_env = mixer_model_->env(batch_, false);
    at::Tensor x;
    {
      const Lease block = teacher.parameters.lease(Model::block_part(layer));
      const Lease mixer = run.aligned->lease(static_cast<size_t>(layer));
      x = block_forward({mixer_model_->config(), layer, Mixer::kLightning, block[0], mixer[0],
                         mixer_env, nullptr},
                        inputs_[layer]);
    }
    x = run_units(model, teacher.parameters, layer + 2, model.units().size(), x, env);
    const Lease head = teacher.parameters.lease(model.head_parts());
    x = model.final_norm().forward(head, x, env, nullptr);
    const at::Tensor& w = model.head_weight(head);
    const double scale = run.source.logit_scale;
    const VocabLoss loss =
        linear_kl(x, w, scale, final_, w, scale, {},
                  at::ones({row_length_}, x.options().dtype(at::kFloat)), DistillConfig{});
    // Position t predicts token t + 1: the first token of the repeated span cannot be recalled.
    const int64_t plain = row_length_ - recall_span_;
    const at::Tensor kl = loss.kl_T.to(at::kDouble);
    return {document, layer, kl.narrow(0, 0, plain - 1).mean().item<double>(),
            kl.narrow(0, plain, recall_span_ - 1).mean().item<double>()};
  }

  void cache_document(Run& run, int64_t document) {
    Network& teacher = run.teacher();
    const Model& model = teacher.model;
    batch_ = single_document(recall_ids(run, document), 0, run.world.device());
    const Env env = model.env(batch_, false);
    inputs_.clear();
    at::Tensor x;
    for (size_t u = 0; u < model.units().size(); ++u) {
      if (u > 0) inputs_.push_back(x);  // input of block u - 1
      x = run_units(model, teacher.parameters, u, u + 1, x, env);
    }
    const Lease head = teacher.parameters.lease(model.head_parts());
    final_ = model.final_norm().forward(head, x, env, nullptr);
    document_ = document;
  }

  // Rank 0 alone reads all items, so that all ranks go on with the same scores.
  void combine(Run& run) {
    run.world.barrier();
    run.world.together("scores", [&] {
      if (run.world.rank() == 0) run.scores = combined();
    });
    run.scores = nlohmann::json::parse(run.world.broadcast(run.scores.dump()));
    publish(run);
  }

  nlohmann::json combined() const {
    std::vector<std::vector<double>> plain(num_layers_), recall(num_layers_);
    std::set<std::pair<int64_t, int64_t>> seen;  // two attempts can both have finished an item
    std::vector<ScoreItem> items = log_->read(key_, num_documents_, num_layers_);
    std::sort(items.begin(), items.end(), [](const ScoreItem& a, const ScoreItem& b) {
      return std::pair(a.document, a.layer) < std::pair(b.document, b.layer);
    });
    for (const ScoreItem& item : items) {
      if (!seen.insert({item.document, item.layer}).second) continue;
      plain[item.layer].push_back(item.plain);
      recall[item.layer].push_back(item.recall);
    }
    if (static_cast<int64_t>(seen.size()) != num_documents_ * num_layers_) {
      throw std::runtime_error(fmt::format("stage {}: {} of {} scores are there; run it again",
                                           name, seen.size(), num_documents_ * num_layers_));
    }
    auto mean = [](const std::vector<double>& v) {
      return std::accumulate(v.begin(), v.end(), 0.0) / static_cast<double>(v.size());
    };
    double all_plain = 0, all_recall = 0;
    for (int64_t l = 0; l < num_layers_; ++l) {
      all_plain += mean(plain[l]) / static_cast<double>(num_layers_);
      all_recall += mean(recall[l]) / static_cast<double>(num_layers_);
    }
    nlohmann::json layers = nlohmann::json::array();
    for (int64_t l = 0; l < num_layers_; ++l) {
      const double p = mean(plain[l]), r = mean(recall[l]);
      double squares = 0;
      const double n = static_cast<double>(plain[l].size());
      const double score = p / all_plain + r / all_recall;
      for (size_t i = 0; i < plain[l].size(); ++i) {
        const double s = plain[l][i] / all_plain + recall[l][i] / all_recall - score;
        squares += s * s;
      }
      layers.push_back({{"layer", l},
                        {"score", score},
                        {"plain", p},
                        {"recall", r},
                        {"se", n > 1 ? std::sqrt(squares / (n * (n - 1))) : 0.0}});
    }
    return {
        {"stage", name}, {"method", method_}, {"documents", num_documents_}, {"layers", layers}};
  }

  // Layers nearest to even distances score 1, in the order that makes any `keep` of them evenly
  // spread.
  void score_uniformly(Run& run) {
    int64_t keep = std::max<int64_t>(run.recipe.num_kept(), 1);
    std::vector<double> score(num_layers_, 0.0);
    for (int64_t i = 0; i < keep; ++i) {
      const double at = keep == 1 ? 0 : static_cast<double>(i) * (num_layers_ - 1) / (keep - 1);
      score[std::llround(at)] = 1.0;
    }
    nlohmann::json layers = nlohmann::json::array();
    for (int64_t l = 0; l < num_layers_; ++l) layers.push_back({{"layer", l}, {"score", score[l]}});
    run.scores = {{"stage", name}, {"method", method_}, {"layers", layers}};
    publish(run);
  }

  void publish(Run& run) const {
    nlohmann::json event = run.scores;
    event["event"] = "scores";
    run.metrics.event(event);
    for (const auto& l : run.scores.at("layers")) {
      if (!l.contains("plain")) continue;
      run.metrics.note(fmt::format("layer {:3}  score {:7.3f} ± {:.3f}  KL {:.5f}, recall {:.5f}",
                                   l.at("layer").get<int64_t>(), l.at("score").get<double>(),
                                   l.at("se").get<double>(), l.at("plain").get<double>(),
                                   l.at("recall").get<double>()));
    }
  }

  void write_scores(const Run& run) const {
    Hdf5File file = Hdf5File::create(run.folder + "/" + kScoresFile);
    file.set_attribute("method", method_);
    for (const char* key : {"score", "plain", "recall", "se"}) {
      std::vector<double> values;
      for (const auto& l : run.scores.at("layers")) values.push_back(l.value(key, 0.0));
      file.write_all(key, values);
    }
    file.commit();
  }

  std::string method_ = "kl";
  std::map<std::string, double> data_;
  int64_t documents_ = 64, row_length_ = 1024, recall_span_ = 64;

  // Fewer documents than the recipe asks for, where the data has no more: the recipe stays as is.
  int64_t num_documents_ = 0, num_layers_ = 0, num_ranks_ = 1, next_ = 0;
  std::string key_;
  std::unique_ptr<ScoreLog> log_;
  std::optional<ItemClock> clock_;
  std::set<std::pair<int64_t, int64_t>> finished_;
  std::vector<Row> rows_;
  std::unique_ptr<Model> mixer_model_;  // every layer lightning: its configuration and tables
  int64_t document_ = -1;               // the one whose block inputs are cached
  Batch batch_;
  std::vector<at::Tensor> inputs_;  // L
  at::Tensor final_;
};

}  // namespace

std::unique_ptr<Stage> make_score_stage() { return std::make_unique<ScoreStage>(); }

}  // namespace sala
