// What plans count, against counts of other kinds.
#include <gtest/gtest.h>

#include "kernels/selection/loss.h"
#include "tests/trainer/preflight_cases.h"
#include "trainer/planning/flops.h"
#include "trainer/planning/plan.h"
#include "trainer/planning/speed.h"

namespace sala {
namespace {

using namespace recipe_cases;

ModelConfig taught_config() {
  ModelConfig c;
  c.num_layers = 3;
  c.width = 64;
  c.ffn_width = 128;
  c.vocab_size = 1000;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.head_size = 16;
  c.mixers = {Mixer::kSparse, Mixer::kLightning, Mixer::kSparse};
  c.sparse.block_size = 16;
  c.sparse.kernel_size = 8;
  c.sparse.kernel_stride = 4;
  c.sparse.window_size = 32;
  return c;
}

// The loss itself says how many queries it has taught; each of its products is counted by its
// sizes.
TEST(SelectionLossFlops, AreThoseOfTheQueriesThatAreTaught) {
  const ModelConfig c = taught_config();
  for (const int64_t length : {1, 64, 97, 250, 1000}) {
    const auto q = at::randn({length, c.num_heads, c.head_size});
    const auto k = at::randn({length, c.num_kv_heads, c.head_size});
    at::Tensor dq = at::zeros_like(q), dk = at::zeros_like(k);
    const Documents docs = Documents::single(length, at::kCPU);
    const at::Tensor sums =
        block_select_loss(q, k, docs, docs, c.sparse, 0.25, SelectionLossOptions{1.0}, dq, dk);
    const auto queries = sums[kSelectionCount].item<double>();
    const auto row = static_cast<double>(c.num_heads * c.head_size);
    const auto windows = static_cast<double>(std::max<int64_t>(length / 4 - 1, 0));
    const double of_layer = queries * 2 * row * (static_cast<double>(length) + 3 * windows);
    EXPECT_NEAR(selection_loss_flops(c, length) * static_cast<double>(length), 2 * of_layer,
                1e-9 * of_layer)
        << length;
  }
}

// Narrow models run more tokens at once, as far as a rank has them.
TEST(Plan, MicroBatchesSuitTheModelUnlessTheRecipeNamesThem) {
  TokenBudget budget;
  budget.row_length = 2048;
  budget.batch_tokens = 1 << 18;
  const auto rows = [&](int64_t width, bool roomy_gpu, int64_t num_ranks) {
    return budget.suited_to(width, roomy_gpu, num_ranks).micro_rows();
  };
  EXPECT_EQ(rows(4096, true, 1), 4);
  EXPECT_EQ(rows(2048, true, 1), 4);
  EXPECT_EQ(rows(1024, true, 1), 8);
  EXPECT_EQ(rows(576, true, 1), 16);
  EXPECT_EQ(rows(576, false, 1), 4);
  EXPECT_EQ(rows(576, true, 32), 4);
  EXPECT_EQ(rows(576, true, 0), 16);
  budget.micro_tokens = 2048;
  EXPECT_EQ(rows(576, true, 1), 1);
}

TEST(Plan, TeachingSelectionTakesFlopsAndTime) {
  const TemporaryFolder folder;
  write_toy(folder);
  const auto planned = [&](const std::string& weight) {
    const auto recipe =
        read_toy(folder, kToyRecipe,
                 {"stages.train.selection_weight=" + weight, "stages.train.recompute=full"});
    const ModelConfig source = read_model_config(folder / "model");
    const PlanContext context{*recipe, source, planned_hybrid(*recipe, source), 2, true, 0, {}};
    const StagePlan plan = recipe->stages[4]->plan(context);
    return std::tuple(plan, context.hybrid, stage_seconds(context, "train", plan, 1e15));
  };
  const auto [without, hybrid, seconds] = planned("0");
  const auto [with, same_hybrid, longer] = planned("1");
  const double added = selection_loss_flops(hybrid, 256) * static_cast<double>(with.tokens);
  ASSERT_GT(added, 0);
  EXPECT_EQ(without.fp32_flops, 0);
  EXPECT_DOUBLE_EQ(with.fp32_flops, added);
  EXPECT_NEAR(with.flops - without.flops, added, 1e-6 * with.flops);
  EXPECT_GE(longer, seconds + 0.5 * added / (kFp32Share * 1e15 * 2));
}

TEST(Plan, RowsThatDoNotDivideAmongRanksTakeTimeAndAreNamed) {
  const TemporaryFolder folder;
  write_toy(folder);
  const auto recipe = read_toy(folder, kToyRecipe);
  const ModelConfig source = read_model_config(folder / "model");
  const auto seconds_and_advice = [&](int64_t ranks, int64_t context) {
    const PlanContext plans{*recipe, source, planned_hybrid(*recipe, source), ranks, false, 0, {}};
    StagePlan plan = recipe->stages[0]->plan(plans);
    plan.shares.ranks = ranks / context;
    return std::pair(stage_seconds(plans, "align", plan, 1e12),
                     uneven_rows_advice(plans, "align", "align", plan, 1e12));
  };
  const auto [alone, none] = seconds_and_advice(1, 1);
  EXPECT_EQ(none, "");
  EXPECT_EQ(seconds_and_advice(4, 1), std::pair(alone / 4, std::string()));
  const auto [uneven, advice] = seconds_and_advice(3, 1);  // 8 rows: 3, 3 and 2
  EXPECT_DOUBLE_EQ(uneven, alone / 8 * 3);
  EXPECT_EQ(advice,
            "stage align: 8 rows a step do not divide among 3 ranks: one that has 3 is waited for, "
            "11 % of the time; batch_tokens: 384 (6 rows) or 576 (9 rows) would divide");
  EXPECT_NE(seconds_and_advice(18, 2).second.find("among 9 groups of 2 ranks: one that has 1 is "
                                                  "waited for, 11 % of the time; batch_tokens: 576 "
                                                  "(9 rows) would divide"),
            std::string::npos);
}

}  // namespace
}  // namespace sala
