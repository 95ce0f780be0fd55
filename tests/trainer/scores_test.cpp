// What makes a choice of layers out of measurements: formulas, draws, the soft choice of gates, the
// order in a file, and the rows that are measured on.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>
#include <set>

#include "data/questions/choice_set.h"
#include "data/source.h"
#include "tests/data/test_store.h"
#include "tests/trainer/preflight_cases.h"
#include "trainer/planning/flops.h"
#include "trainer/planning/plan.h"
#include "trainer/scores/confidence.h"
#include "trainer/scores/formulas.h"
#include "trainer/scores/gates.h"
#include "trainer/scores/order_file.h"
#include "trainer/scores/rows.h"

namespace sala {
namespace {

using Layers = std::vector<int64_t>;

TEST(LayerChoice, ForcesTheEndsAndBreaksTiesToTheLowerLayer) {
  const std::vector<double> scores = {0, 3, 5, 5, 1, 0};
  EXPECT_EQ(by_score(scores), (Layers{2, 3, 1, 4, 0, 5}));
  EXPECT_EQ(chosen_layers({3, {}, false}, scores), (Layers{1, 2, 3}));
  EXPECT_EQ(chosen_layers({3, {}, true}, scores), (Layers{0, 2, 5}));
  EXPECT_EQ(chosen_layers({0, {4, 1}, true}, scores), (Layers{1, 4}));
  EXPECT_EQ(chosen_layers({6, {}, true}, scores), (Layers{0, 1, 2, 3, 4, 5}));
  EXPECT_TRUE(chosen_layers({}, scores).empty());
}

SwapTable two_rows() {
  SwapTable table(2, 3);
  table.plain = {0.5, 0.4, 0.5, 0.7, 0.6, 0.7};
  table.recall = {0.8, 0.3, 0.6, 1.0, 0.5, 1.0};
  return table;
}

TEST(ScoreFormulas, HaloIsRecallLostOverCommonSenseLost) {
  const LayerScores s = halo_scores(two_rows(), std::vector<double>{1, 1});
  // R = 0.9, 0.4, 0.8; C = 0.6, 0.5, 0.6: both are lost from the best of the swapped models.
  EXPECT_NEAR(s.recall[1], 0.4, 1e-12);
  EXPECT_NEAR(s.plain[2], 0.6, 1e-12);
  EXPECT_NEAR(s.score[0], 0, 1e-12);
  EXPECT_NEAR(s.score[1], 0.5 / (0.1 + 1e-6), 1e-9);
  EXPECT_EQ(s.score[2], 50);  // 0.1 / 1e-6, capped
  const LayerScores second = halo_scores(two_rows(), std::vector<double>{0, 2});
  EXPECT_NEAR(second.recall[1], 0.5, 1e-12);
  EXPECT_EQ(second.score[2], 0);
}

TEST(ScoreFormulas, KlCountsTextAndRecallAlike) {
  const LayerScores s = kl_scores(two_rows(), std::vector<double>{1, 1});
  EXPECT_NEAR(s.score[0] + s.score[1] + s.score[2], 6, 1e-12);
  EXPECT_NEAR(s.score[1], 0.5 / (1.7 / 3) + 0.4 / 0.7, 1e-12);
  const LayerScores none = kl_scores(SwapTable(2, 3), std::vector<double>{1, 1});
  EXPECT_EQ(none.score, (std::vector<double>{0, 0, 0}));
}

TEST(ScoreConfidence, DrawsHaveAsManyRowsAndAreReproducible) {
  for (const int64_t draw : {0, 7}) {
    const auto weights = drawn_weights(50, 3, draw);
    EXPECT_EQ(std::accumulate(weights.begin(), weights.end(), 0.0), 50);
    EXPECT_EQ(weights, drawn_weights(50, 3, draw));
  }
  EXPECT_NE(drawn_weights(50, 3, 0), drawn_weights(50, 3, 1));
}

// Layers 1 and 3 matter alike but for noise, 2 far more, 0 and 4 not at all.
TEST(ScoreConfidence, SaysWhichLayersCannotBeToldApart) {
  const LayerChoice choice{2, {}, false};
  std::mt19937_64 random(1);
  std::normal_distribution<double> noise(0, 0.1);
  const std::vector<double> scores = {0, 1.01, 9, 1, 0};
  std::vector<std::vector<double>> drawn;
  for (int d = 0; d < 400; ++d) {
    drawn.push_back(scores);
    for (double& s : drawn.back()) s += noise(random);
  }
  const Confidence sure = confidence(choice, scores, drawn);
  ASSERT_EQ(sure.rivals.size(), 1u);
  EXPECT_EQ(sure.rivals[0].kept, 1);
  EXPECT_EQ(sure.rivals[0].dropped, 3);
  EXPECT_NEAR(sure.rivals[0].share, 0.47, 0.08);
  EXPECT_NEAR(sure.same_choice, 1 - sure.rivals[0].share, 0.02);
  EXPECT_NEAR(sure.standard_error[2], 0.1, 0.02);
  EXPECT_EQ(sure.kept_share[2], 1);
  const auto record = choice_record(choice, scores, &sure);
  EXPECT_TRUE(record.at("within_noise").get<bool>());
  const auto note = record.at("note").get<std::string>();
  EXPECT_NE(note.find("layers 1 and 3 cannot be told apart: "), note.npos) << note;
  // With one layer to keep there is no doubt; what is forced has no rivals.
  const LayerChoice one{1, {}, false}, ends{2, {}, true};
  const Confidence of_one = confidence(one, scores, drawn),
                   of_ends = confidence(ends, scores, drawn);
  EXPECT_FALSE(choice_record(one, scores, &of_one).at("within_noise").get<bool>());
  EXPECT_EQ(of_ends.same_choice, 1);
  EXPECT_TRUE(of_ends.rivals.empty());
}

TEST(SoftChoice, KeepsTheBudgetAndHasTheGradientOfDifferences) {
  std::mt19937_64 random(2);
  std::normal_distribution<double> normal;
  for (const double tau : {1.0, 0.1}) {
    for (const double budget : {0.4, 3.0, 6.5}) {
      std::vector<double> logits(7), d_gates(7);
      for (double& a : logits) a = 0.3 * normal(random);
      for (double& d : d_gates) d = normal(random);
      const auto gates = soft_choice(logits, budget, tau);
      EXPECT_NEAR(std::accumulate(gates.begin(), gates.end(), 0.0), budget, 1e-9);
      const auto d_logits = soft_choice_backward(gates, d_gates, tau);
      for (size_t l = 0; l < logits.size(); ++l) {
        const auto value = [&](double step) {
          std::vector<double> moved = logits;
          moved[l] += step;
          const auto g = soft_choice(moved, budget, tau);
          return std::inner_product(g.begin(), g.end(), d_gates.begin(), 0.0);
        };
        EXPECT_NEAR(d_logits[l], (value(1e-5) - value(-1e-5)) / 2e-5, 1e-6);
      }
    }
  }
}

// Layer 2 matters alone; 4 and 5 stand in for each other, so that swapping one loses nothing; 1 and
// 6 matter a little.
TEST(GatesLearn, KeepsOneOfTwoLayersThatStandInForEachOther) {
  const std::vector<double> alone = {0.01, 0.05, 1, 0.01, 0.01, 0.01, 0.05, 0.01};
  Gates gates(std::vector<bool>(8, false), 2, 100, 0.1);
  std::mt19937_64 random(3);
  std::normal_distribution<double> normal;
  for (int step = 0; step < 100; ++step) {
    const auto g = gates.values();
    EXPECT_NEAR(std::accumulate(g.begin(), g.end(), 0.0), gates.budget(), 1e-9);
    std::vector<double> d_gates;  // of the sum of alone (1 - g)^2, and of (1 - g_4)^2 (1 - g_5)^2
    for (size_t l = 0; l < g.size(); ++l) d_gates.push_back(-2 * alone[l] * (1 - g[l]));
    d_gates[4] -= 2 * (1 - g[4]) * (1 - g[5]) * (1 - g[5]);
    d_gates[5] -= 2 * (1 - g[5]) * (1 - g[4]) * (1 - g[4]);
    for (double& d : d_gates) d *= 1 + 0.3 * normal(random);
    gates.step(d_gates);
  }
  const auto kept = chosen_layers({2, {}, false}, gates.scores());
  EXPECT_EQ(kept[0], 2);
  EXPECT_TRUE(kept[1] == 4 || kept[1] == 5) << kept[1];
}

TEST(GatesLearn, ForcedLayersStayOpenAndCount) {
  std::vector<bool> open(6, false);
  open[0] = open[5] = true;
  Gates gates(open, 3, 10, 0.1);
  for (int step = 0; step < 10; ++step) {
    gates.step(std::vector<double>{0, 0, -1, 0, 0, 0});
    EXPECT_EQ(gates.values()[0], 1);
    EXPECT_EQ(gates.values()[5], 1);
  }
  EXPECT_EQ(by_score(gates.scores())[0], 0);
  EXPECT_EQ(chosen_layers({3, {}, true}, gates.scores()), (Layers{0, 2, 5}));
  EXPECT_NEAR(gates.budget(), 3, 1e-9);
}

TEST(OrderFile, ListsAndScoresOfAnotherRun) {
  const recipe_cases::TemporaryFolder folder;
  const std::vector<double> expected = {0, 2, 0, 3, 1};
  for (const char* text : {"3 1 4\n", "3, 1\n4", "# best first\n3\n1 # second\n\n4", "[3, 1, 4]"}) {
    EXPECT_EQ(read_order_file(folder.write("order.txt", text), 5), expected) << text;
  }
  Hdf5File file = Hdf5File::create(folder / "scores.h5");
  file.write_all("score", expected);
  file.commit();
  EXPECT_EQ(read_order_file(folder / "scores.h5", 5), expected);
  expect_error([&] { read_order_file(folder / "scores.h5", 6); }, {"scores.h5", "5 layers", "6"});
  const std::pair<const char*, const char*> wrong[] = {
      {"", "names no layer"},
      {"3 x", "expected layer numbers, but found 'x'"},
      {"3 1 3", "names layer 3 twice"},
      {"5", "5 is no layer of the source, whose last is 4"},
      {"[1, 2.5]", "expected a JSON list of layer numbers"},
      {"{\"layers\": [1]}", "expected a JSON list of layer numbers"},
  };
  for (const auto& [text, message] : wrong) {
    expect_error([&] { read_order_file(folder.write("order.txt", text), 5); },
                 {"order.txt", message});
  }
  expect_error([&] { read_order_file(folder / "none", 5); }, {"none", "no such file"});
}

std::vector<int64_t> counted_ids(int64_t n) {
  std::vector<int64_t> ids(static_cast<size_t>(n));
  std::iota(ids.begin(), ids.end(), 100);
  return ids;
}

TEST(ScoreRows, ARepeatedSpanIsACopyOfAnEarlierOne) {
  const ScoreRow row = repeated_span(counted_ids(64), 16, "1/0");
  for (int64_t i = 1; i < 16; ++i) EXPECT_EQ(row.ids[48 + i], row.ids[48] + i);
  EXPECT_LE(row.ids[48], 100 + 32);
  EXPECT_EQ(row.plain.sum().item<double>(), 47);
  EXPECT_EQ(row.recall.sum().item<double>(), 15);
  EXPECT_EQ((row.plain * row.recall).sum().item<double>(), 0);
}

TEST(ScoreRows, EveryPlantedFactIsAskedOnce) {
  constexpr int64_t kFacts = 5, kPlain = 200 - kFacts * kFactTokens;
  const ScoreRow row = planted_facts(counted_ids(200), 43, "1/0");
  ASSERT_EQ(row.ids.size(), 200u);
  const auto same = [&](int64_t a, int64_t b) {
    return std::equal(row.ids.begin() + a, row.ids.begin() + a + kFactTokens, row.ids.begin() + b);
  };
  std::set<int64_t> places;
  for (int64_t f = 0; f < kFacts; ++f) {
    const int64_t asked = kPlain + f * kFactTokens;
    for (int64_t t = 0; t + kFactTokens <= kPlain; ++t) {
      if (!same(t, asked)) continue;
      places.insert(t);
      for (int64_t i = 0; i < kFactTokens; ++i) {  // its tokens are no plain text
        EXPECT_EQ(row.plain[std::max<int64_t>(t + i - 1, 0)].item<double>(), 0);
      }
    }
    for (int64_t i = 0; i < kFactTokens; ++i) {  // t predicts t + 1
      EXPECT_EQ(row.recall[asked + i - 1].item<double>(), i >= kKeyTokens);
    }
  }
  EXPECT_EQ(places.size(), static_cast<size_t>(kFacts));
  EXPECT_EQ(row.recall.sum().item<double>(), kFacts * kAnswerTokens);
  EXPECT_LE(row.plain.sum().item<double>(), kPlain - 1 - kFacts * (kFactTokens - 1));
  EXPECT_EQ(row.plain.narrow(0, kPlain - 1, 200 - kPlain + 1).sum().item<double>(), 0);
  EXPECT_EQ(planted_facts(counted_ids(200), 43, "1/0").ids, row.ids);
  EXPECT_NE(planted_facts(counted_ids(200), 43, "1/1").ids, row.ids);
}

TEST(ScoreOptions, ContradictionsAreNamed) {
  using namespace recipe_cases;
  const TemporaryFolder folder;
  const std::pair<const char*, const char*> wrong[] = {
      {"{method: halo}", "score.data: method: halo needs data"},
      {"{method: gates, data: {web: 1}, recall_span: 4}",
       "score.recall_span: 4 has no room for a fact of 8 tokens"},
      {"{method: gates, data: {web: 1}, row_length: 128, recall_span: 40}",
       "score.recall_span: 40 must be at most a quarter of row_length 128"},
      {"{method: gates, data: {web: 1}, lr: 0}", "score.lr: 0 must be more than 0"},
      {"{method: gates, data: {web: 1}, documents: 4}",
       "score.step_rows: 8 rows in a step, but documents is 4"},
      {"{method: file}", "score.file: method: file needs the file's path"},
      {"{method: uniform, file: x}", "score.file: is read by method: file alone"},
      {"{method: best}", "score.method"},
  };
  for (const auto& [options, message] : wrong) {
    const std::string text = complaint(folder, edited(kGood, "{method: uniform}", options));
    EXPECT_NE(text.find(message), text.npos) << options << ": " << text;
  }
}

TEST(ScoreOptions, PlansCountEveryPass) {
  using namespace recipe_cases;
  const TemporaryFolder folder;
  write_toy(folder);
  const auto recipe = read_toy(folder, kToyRecipe);
  const ModelConfig source = read_model_config(folder / "model");
  const PlanContext context{*recipe, source, planned_hybrid(*recipe, source), 1, false, 0, {}};
  ScoreOptions options;
  options.data = {{"a", 1}};
  options.documents = 16;
  options.row_length = 128;
  const StagePlan kl = options.plan(context);
  EXPECT_EQ(kl.steps, 16 * source.num_layers);
  options.method = "halo";
  EXPECT_EQ(options.plan(context).flops, kl.flops);
  options.method = "gates";
  options.steps = 4;
  options.step_rows = 4;  // as many rows as the others
  const StagePlan gates = options.plan(context);
  EXPECT_EQ(gates.steps, 4);
  EXPECT_EQ(gates.tokens, 16 * 128);
  const double forward = forward_flops(source, 128, false) * static_cast<double>(gates.tokens);
  EXPECT_GT(gates.flops, 4 * forward);  // teacher; gated twice; back
  EXPECT_LT(gates.flops, 7 * forward);
  EXPECT_EQ(gates.weights_bytes, kl.weights_bytes);
  options.method = "uniform";
  EXPECT_EQ(options.plan(context).flops, 0);
}

TEST(ScoreOptions, AnOrderNamesAsManyLayersAsAreKept) {
  using namespace recipe_cases;
  const TemporaryFolder folder;
  write_toy(folder);
  const auto recipe = read_toy(folder, edited(kToyRecipe, "keep: 2", "keep: 3"));
  const ModelConfig source = read_model_config(folder / "model");
  const PlanContext context{*recipe, source, planned_hybrid(*recipe, source), 1, false, 0, {}};
  const std::map<std::string, Source> none;
  const std::map<std::string, ChoiceSet> no_choices;
  const StageInputs inputs{*recipe, &context, none, nullptr, no_choices, nullptr, false};
  ScoreOptions options;
  options.method = "file";
  const auto problem = [&](const std::string& order) {
    options.file = folder.write("order.txt", order);
    RecipeProblems problems;
    options.check_inputs("score", inputs, problems);
    return problems.text();
  };
  EXPECT_EQ(problem("1"), "");  // 0 and 2 are forced
  EXPECT_NE(problem("0").find("orders 2 layers"), std::string::npos) << problem("0");
  EXPECT_NE(problem("7").find("7 is no layer of the source"), std::string::npos);
}

}  // namespace
}  // namespace sala
