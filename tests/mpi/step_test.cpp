// The training step on several real ranks.
#include "trainer/step.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/mpi/test_world.h"

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

// One step in which rank `rank_with_rows` has the only row, with a target weight of `weight`.
StepResult step(Model& model, World& world, int rank_with_rows, float weight) {
  std::vector<TrainedPart> parts;
  for (Weights& part : model.parts()) parts.push_back(make_trained(part));
  OptimizerOptions options;
  options.schedule.lr = 1e-2;
  Optimizer optimizer(parts, options);
  Replicated sharding(model.part_pointers(), world.comm());
  NextTokenLoss loss;
  std::vector<Batch> batches;
  if (world.rank() == rank_with_rows) {
    batches.push_back(batch_of(12));
    batches.back().loss_weight[5] = weight;
  }
  StepOptions step_options;
  step_options.lr = 1e-2;
  return train_step(model, loss, batches, sharding, optimizer, world.comm(), step_options);
}

void fill(Model& model) {
  for (Weights& part : model.parts()) {
    part.flat.copy_(at::sin(at::arange(part.flat.numel(), at::kFloat)) * 0.3);
  }
}

}  // namespace

TEST(StepOnRanks, ALossThatIsNotFiniteOnOneRankChangesNothingOnAny) {
  World& world = test_world();
  Model model(tiny(), at::kFloat, at::kCPU);
  fill(model);
  std::vector<at::Tensor> before;
  for (Weights& part : model.parts()) before.push_back(part.flat.clone());
  const StepResult result =
      step(model, world, world.size() - 1, std::numeric_limits<float>::quiet_NaN());
  EXPECT_FALSE(result.finite);
  for (size_t p = 0; p < before.size(); ++p) {
    EXPECT_TRUE(at::equal(model.parts()[p].flat, before[p])) << "part " << p;
  }
}

TEST(StepOnRanks, RanksWithoutRowsEndWithTheSameWeights) {
  World& world = test_world();
  Model model(tiny(), at::kFloat, at::kCPU);
  fill(model);
  const StepResult result = step(model, world, 0, 1.0F);
  EXPECT_TRUE(result.finite);
  EXPECT_GT(result.grad_norm, 0);
  for (Weights& part : model.parts()) {
    at::Tensor first = part.flat.clone();
    world.comm().broadcast(first, 0);
    EXPECT_TRUE(at::equal(first, part.flat));
  }
}

}  // namespace sala
