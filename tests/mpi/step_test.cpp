// The training step on several real ranks.
#include "trainer/step.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/mpi/test_world.h"
#include "trainer/batches.h"

namespace sala {

namespace {

ModelConfig tiny() {
  ModelConfig c;
  c.family = "llama";
  c.num_layers = 2;
  c.width = 16;
  c.ffn_width = 32;
  c.vocab_size = 20;
  c.num_heads = 1;
  c.num_kv_heads = 1;
  c.head_size = 32;
  c.max_position = 64;
  c.tied_head = true;
  c.mixers.assign(2, Mixer::kFull);
  return c;
}

Batch batch_of(int64_t T) {
  Batch batch;
  batch.ids = at::arange(T) % 20;
  batch.targets = (batch.ids + 1) % 20;
  batch.loss_weight = at::ones({T});
  batch.position = at::arange(T);
  batch.docs = Documents::single(T, at::kCPU);
  batch.global_weight = static_cast<double>(T);
  return batch;
}

}  // namespace

class StepOnRanks : public testing::TestWithParam<Sharding> {
 protected:
  StepOnRanks() {
    for (size_t p = 0; p < parameters().num_parts(); ++p) {
      const at::Tensor n = at::arange(parameters().layout(p)->num_elements, at::kFloat);
      parameters().set_whole(p, at::sin(n) * 0.3);
    }
  }
  Parameters& parameters() { return network_.parameters; }
  std::vector<at::Tensor> weights() {
    std::vector<at::Tensor> all;
    for (size_t p = 0; p < parameters().num_parts(); ++p) {
      all.push_back(parameters().whole(p).clone());
    }
    return all;
  }

  // One step in which rank `rank_with_rows` has the only row, with a target weight of `weight`.
  StepResult step(int rank_with_rows, float weight) {
    OptimizerOptions options;
    options.schedule.lr = 1e-2;
    Optimizer optimizer(parameters(), options);
    NextTokenLoss loss;
    Batch batch = idle_batch({.global_weight = 12}, at::kCPU);
    if (world_.rank() == rank_with_rows) {
      batch = batch_of(12);
      batch.loss_weight[5] = weight;
    }
    return take_step(
        {&batch, 1},
        [&](const Batch& b, bool last) { return model_passes(network_, loss, b, last, {}); },
        parameters(), optimizer, world_.comm(), {.lr = 1e-2});
  }

  World& world_ = test_world();
  Network network_{tiny(),
                   {at::kFloat, at::kCPU, GetParam(), true, {}},
                   {&world_.gather_comm(), &world_.reduce_comm()}};
};

TEST_P(StepOnRanks, ALossThatIsNotFiniteOnOneRankChangesNothingOnAny) {
  const auto before = weights();
  const StepResult result = step(world_.size() - 1, std::numeric_limits<float>::quiet_NaN());
  EXPECT_FALSE(result.finite);
  const auto after = weights();
  for (size_t p = 0; p < before.size(); ++p) {
    EXPECT_TRUE(at::equal(after[p], before[p])) << "part " << p;
  }
}

TEST_P(StepOnRanks, RanksWithoutRowsEndWithTheSameWeights) {
  const StepResult result = step(0, 1.0F);
  EXPECT_TRUE(result.finite);
  EXPECT_GT(result.grad_norm, 0);
  for (const at::Tensor& part : weights()) {
    at::Tensor first = part.clone();
    world_.comm().broadcast(first, 0);
    EXPECT_TRUE(at::equal(first, part));
  }
}

INSTANTIATE_TEST_SUITE_P(All, StepOnRanks,
                         testing::Values(Sharding::kNone, Sharding::kZero1, Sharding::kZero3),
                         [](const auto& test) {
                           return test.param == Sharding::kNone    ? "none"
                                  : test.param == Sharding::kZero1 ? "zero1"
                                                                   : "zero3";
                         });

}  // namespace sala
