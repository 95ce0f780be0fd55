// One layer looked at at a time, on rows of text that end in recall (rows.h). Swapped for its
// aligned lightning mixer, `kl` measures the KL to the teacher, `halo` which next tokens are
// predicted exactly; `retrieval` leaves it in its place and measures where it looks. formulas.h
// makes scores of them.
// A work item is (row, layer); rows are shared out over the ranks.
#include <fmt/format.h>

#include <cmath>
#include <optional>
#include <set>

#include "data/files/hash.h"
#include "trainer/scores/confidence.h"
#include "trainer/scores/formulas.h"
#include "trainer/scores/item_log.h"
#include "trainer/scores/method.h"
#include "trainer/scores/retrieval_pass.h"
#include "trainer/scores/rows.h"
#include "trainer/scores/swap_pass.h"

namespace sala {

namespace {

constexpr int64_t kDraws = 1000;  // of rows, for standard errors and the choice's confidence

struct SwapItem {
  int64_t row = 0, layer = 0;
  double plain = 0, recall = 0;  // means over the row's tokens of that kind; retrieval: the mass
                                 // at keys and at answers
};

nlohmann::json to_json(const SwapItem& item) {
  return {{"document", item.row},
          {"layer", item.layer},
          {"plain", item.plain},
          {"recall", item.recall}};
}

double masked_mean(const at::Tensor& values_T, const at::Tensor& mask_T) {
  return ((values_T * mask_T).sum() / mask_T.sum()).item<double>();
}

class SwapScores : public ScoreMethod {
 public:
  SwapScores(Run& run, const ScoreOptions& options, const std::string& stage)
      : options_(options),
        stage_(stage),
        num_layers_(run.source.num_layers),
        num_ranks_(run.world.size()),
        num_rows_(options.documents),
        pass_(run, options.method == "halo" ? SwapPass::kHit : SwapPass::kKl) {}

  bool advance(Run& run) override {
    if (!log_) open(run);
    if (next_ >= num_steps()) return false;
    const int64_t row = next_ / num_layers_ * num_ranks_ + run.world.rank();
    const int64_t layer = next_ % num_layers_;
    const bool mine = row < num_rows_ && !finished_.count({row, layer});
    // Leases are collective: where one rank has something to do, all pass through the same units.
    if (run.world.any(mine)) {
      run.world.together("scoring", [&] {
        const SwapItem item = score(run, std::min(row, num_rows_ - 1), layer);
        if (mine) record(item);
      });
    }
    ++next_;
    run.metrics.progress({.stage = stage_,
                          .unit = "scores",
                          .step = next_,
                          .num_steps = num_steps(),
                          .seconds_left = clock_->seconds_left(next_, num_steps())});
    return true;
  }

  int64_t step() const override { return next_; }
  int64_t num_steps() const override {
    return (num_rows_ + num_ranks_ - 1) / num_ranks_ * num_layers_;
  }

  // Rank 0 alone reads all items, so that all ranks go on with the same scores.
  nlohmann::json scores(Run& run) override {
    nlohmann::json record;
    run.world.barrier();
    run.world.together("scores", [&] {
      if (run.world.rank() == 0) record = combined(run);
    });
    return nlohmann::json::parse(run.world.broadcast(record.dump()));
  }

 private:
  void open(Run& run) {
    run.world.together("score stage", [&] { rows_ = read_score_rows(run, options_, stage_); });
    num_rows_ = static_cast<int64_t>(rows_.size());
    const std::string mixers = hash_of_mixers(run);  // a collective: not where one rank may throw
    run.world.together("score stage", [&] {
      // Items belong to this recipe, these rows and these mixers.
      const nlohmann::json identity = {{"stage", stage_},
                                       {"method", options_.method},
                                       {"rows", options_.row_length},
                                       {"documents", num_rows_},
                                       {"span", options_.recall_span},
                                       {"seed", run.recipe.run.seed},
                                       {"tokens", hash_of_rows(rows_)},
                                       {"mixers", mixers}};
      key_ = xxh3_64_hex(identity.dump().data(), identity.dump().size());
      log_ = std::make_unique<ItemLog>(run.folder + "/scores", run.world.rank());
    });
    run.world.barrier();
    run.world.together("score stage", [&] {
      for (const SwapItem& item : read_items()) finished_.insert({item.row, item.layer});
    });
    clock_.emplace();
  }

  std::vector<SwapItem> read_items() const {
    std::vector<SwapItem> items;
    for (const nlohmann::json& json : log_->read(key_)) {
      const SwapItem item{json.at("document"), json.at("layer"), json.at("plain"),
                          json.at("recall")};
      const bool in_range =
          item.row >= 0 && item.row < num_rows_ && item.layer >= 0 && item.layer < num_layers_;
      if (in_range) items.push_back(item);
    }
    return items;
  }

  void record(const SwapItem& item) {
    if (!std::isfinite(item.plain) || !std::isfinite(item.recall)) {
      throw std::runtime_error(fmt::format(
          "what is measured on document {} for layer {} is not finite: align longer, or "
          "at a lower lr",
          item.row, item.layer));
    }
    log_->append(to_json(item), key_);
  }

  SwapItem score(Run& run, int64_t row, int64_t layer) {
    if (options_.method == "retrieval") {
      const RetrievalPass::Mass mass = retrieval_(run, row, rows_[row], layer);
      return {row, layer, mass.key, mass.answer};
    }
    const at::Tensor values = pass_(run, row, rows_[row], layer);
    return {row, layer, masked_mean(values, rows_[row].plain),
            masked_mean(values, rows_[row].recall)};
  }

  SwapTable table() const {
    SwapTable table(num_rows_, num_layers_);
    std::set<std::pair<int64_t, int64_t>> seen;  // two attempts can both have finished an item
    for (const SwapItem& item : read_items()) {
      if (!seen.insert({item.row, item.layer}).second) continue;
      table.plain[item.row * num_layers_ + item.layer] = item.plain;
      table.recall[item.row * num_layers_ + item.layer] = item.recall;
    }
    if (static_cast<int64_t>(seen.size()) != num_rows_ * num_layers_) {
      throw std::runtime_error(fmt::format("stage {}: {} of {} scores are there; run it again",
                                           stage_, seen.size(), num_rows_ * num_layers_));
    }
    return table;
  }

  nlohmann::json combined(const Run& run) const {
    const auto formula = options_.method == "halo" ? halo_scores : kl_scores;
    const SwapTable measured = table();
    const LayerScores found = formula(measured, std::vector<double>(num_rows_, 1.0));
    std::vector<std::vector<double>> drawn;
    for (int64_t d = 0; d < kDraws && num_rows_ > 1; ++d) {
      const auto seed = static_cast<uint64_t>(run.recipe.run.seed);
      drawn.push_back(formula(measured, drawn_weights(num_rows_, seed, d)).score);
    }
    const LayerChoice choice = run.recipe.layer_choice();
    const Confidence sure = confidence(choice, found.score, drawn);
    nlohmann::json record = choice_record(choice, found.score, drawn.empty() ? nullptr : &sure);
    record["documents"] = num_rows_;
    for (int64_t l = 0; l < num_layers_; ++l) {
      record["layers"].push_back({{"layer", l},
                                  {"score", found.score[l]},
                                  {"plain", found.plain[l]},
                                  {"recall", found.recall[l]},
                                  {"se", sure.standard_error[l]},
                                  {"kept_share", sure.kept_share[l]}});
    }
    return record;
  }

  ScoreOptions options_;
  std::string stage_;
  int64_t num_layers_, num_ranks_;
  int64_t num_rows_;  // fewer than the recipe asks for, where the data has no more
  SwapPass pass_;
  RetrievalPass retrieval_;
  int64_t next_ = 0;
  std::string key_;
  std::unique_ptr<ItemLog> log_;
  std::optional<ItemClock> clock_;
  std::set<std::pair<int64_t, int64_t>> finished_;
  std::vector<ScoreRow> rows_;
};

}  // namespace

std::unique_ptr<ScoreMethod> make_swap_scores(Run& run, const ScoreOptions& options,
                                              const std::string& stage) {
  return std::make_unique<SwapScores>(run, options, stage);
}

}  // namespace sala
