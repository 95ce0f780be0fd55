// Scores that need no model. `uniform`: layers at even distances, the control; those nearest to
// them score 1. `file`: what a file says (order_file.h).
#include <cmath>

#include "trainer/scores/confidence.h"
#include "trainer/scores/method.h"
#include "trainer/scores/order_file.h"

namespace sala {

namespace {

std::vector<double> even_scores(int64_t num_layers, int64_t keep) {
  std::vector<double> scores(static_cast<size_t>(num_layers), 0.0);
  for (int64_t i = 0; i < keep; ++i) {
    const double at = keep == 1 ? 0 : static_cast<double>(i) * (num_layers - 1) / (keep - 1);
    scores[static_cast<size_t>(std::llround(at))] = 1.0;
  }
  return scores;
}

class GivenScores : public ScoreMethod {
 public:
  explicit GivenScores(const ScoreOptions& options) : options_(options) {}

  bool advance(Run& run) override {
    if (!scores_.empty()) return false;
    const int64_t num_layers = run.source.num_layers;
    run.world.together("scores", [&] {
      scores_ = options_.method == "file"
                    ? read_order_file(options_.file, num_layers)
                    : even_scores(num_layers, std::max<int64_t>(run.recipe.num_kept(), 1));
    });
    return true;
  }
  int64_t step() const override { return scores_.empty() ? 0 : 1; }
  int64_t num_steps() const override { return 1; }

  nlohmann::json scores(Run& run) override {
    nlohmann::json record = choice_record(run.recipe.layer_choice(), scores_, nullptr);
    for (size_t l = 0; l < scores_.size(); ++l) {
      record["layers"].push_back({{"layer", l}, {"score", scores_[l]}, {"se", 0.0}});
    }
    return record;
  }

 private:
  ScoreOptions options_;
  std::vector<double> scores_;
};

}  // namespace

std::unique_ptr<ScoreMethod> make_given_scores(const ScoreOptions& options) {
  return std::make_unique<GivenScores>(options);
}

}  // namespace sala
