// The training step against one autograd graph over the whole model, and against itself in other
// shapes.
#include "trainer/step.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "model/convert.h"
#include "model/parts.h"

namespace sala {

namespace {

constexpr int64_t kVocab = 50;

ModelConfig tiny(bool tied) {
  ModelConfig c;
  c.family = "minicpm_sala";
  c.num_layers = 3;
  c.width = 24;
  c.ffn_width = 40;
  c.vocab_size = kVocab;
  c.num_heads = 3;
  c.num_kv_heads = 1;
  c.lightning_kv_heads = 3;
  c.head_size = 32;
  c.max_position = 256;
  c.tied_head = tied;
  c.residual_scale = 0.8;
  c.embedding_scale = 2.0;
  c.logit_scale = 0.5;
  c.sparse = {8, 4, 1, 16, 32, 2, 64};
  c.mixers = {Mixer::kSparse, Mixer::kLightning, Mixer::kSparse};
  return c;
}

std::unique_ptr<Model> random_model(const ModelConfig& config, uint64_t seed) {
  auto model = std::make_unique<Model>(config, at::kFloat, at::kCPU);
  at::Generator generator = at::detail::createCPUGenerator(seed);
  for (Weights& part : model->parts()) {
    for (size_t i = 0; i < part.views().size(); ++i) {
      at::Tensor view = part.views()[i];
      view.copy_(at::randn(view.sizes(), generator, at::kFloat) * 0.2 +
                 (part.layout().entries[i].init == Init::kOnes ? 1.0 : 0.0));
    }
  }
  return model;
}

Batch random_batch(const std::vector<int64_t>& starts, int64_t T, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  Batch batch;
  batch.ids = at::randint(0, kVocab, {T}, generator, at::kLong);
  batch.targets = at::randint(0, kVocab, {T}, generator, at::kLong);
  batch.loss_weight = (at::rand({T}, generator, at::kFloat) > 0.2).to(at::kFloat);
  batch.docs = Documents::from_starts(starts, T, at::kCPU);
  batch.position = at::empty({T}, at::kLong);
  for (int64_t d = 0; d < batch.docs.count(); ++d) {
    batch.position.narrow(0, batch.docs.offsets[d], batch.docs.length(d))
        .copy_(at::arange(batch.docs.length(d)));
  }
  batch.global_weight = batch.loss_weight.sum().item<double>();
  return batch;
}

OptimizerOptions optimizer_options() {
  OptimizerOptions options;
  options.schedule.lr = 1e-2;
  options.weight_decay = 0.1;
  return options;
}

struct Trained {
  StepResult result;
  std::vector<at::Tensor> weights;
};

Trained train_once(const ModelConfig& config, std::vector<Batch> batches, bool recompute,
                   const OptimizerOptions& options = optimizer_options()) {
  auto model = random_model(config, 5);
  std::vector<TrainedPart> parts;
  for (Weights& part : model->parts()) parts.push_back(make_trained(part));
  auto comm = make_single_comm();
  Optimizer optimizer(parts, options);
  Replicated sharding(model->part_pointers(), *comm);
  NextTokenLoss loss;
  StepOptions step;
  step.lr = options.schedule.lr;
  step.recompute = recompute;
  Trained out;
  out.result = train_step(*model, loss, batches, sharding, optimizer, *comm, step);
  for (Weights& part : model->parts()) out.weights.push_back(part.flat.clone());
  return out;
}

// Norm of the gradient of the whole model as one autograd graph.
std::vector<double> whole_graph_norms(const ModelConfig& config, const Batch& batch) {
  auto model = random_model(config, 5);
  for (Weights& part : model->parts()) part.set_requires_grad(true);
  const Env env = model->env(batch, true);
  at::Tensor x;
  for (size_t u = 0; u < model->units().size(); ++u) {
    x = model->units()[u]->forward(model->unit_weights(u), x, env, nullptr);
  }
  const at::Tensor logits = at::linear(x, model->head_weight()) * config.logit_scale;
  const at::Tensor losses =
      -at::log_softmax(logits, 1).gather(1, batch.targets.unsqueeze(1)).squeeze(1);
  const at::Tensor loss = (losses * batch.loss_weight).sum() / batch.global_weight;
  std::vector<double> norms;
  for (const Weights& part : model->parts()) {
    auto grads = torch::autograd::grad({loss}, part.views(), {}, true);
    double squares = 0;
    for (const at::Tensor& g : grads) squares += g.square().sum().item<double>();
    norms.push_back(std::sqrt(squares));
  }
  return norms;
}

}  // namespace

TEST(TrainStep, GradientsEqualOneGraphOverTheWholeModel) {
  for (bool tied : {true, false}) {
    const ModelConfig config = tiny(tied);
    const Batch batch = random_batch({0, 5, 6, 80}, 190, 1);  // two short documents, two sparse
    const Trained trained = train_once(config, {batch}, false);
    const auto expected = whole_graph_norms(config, batch);
    for (size_t p = 0; p < expected.size(); ++p) {
      EXPECT_NEAR(trained.result.part_norms[p], expected[p], 2e-5 * expected[p]) << "part " << p;
    }
  }
}

TEST(TrainStep, RecomputingChangesNoBit) {
  const Batch batch = random_batch({0, 70, 71}, 150, 2);
  const Trained kept = train_once(tiny(true), {batch}, false);
  const Trained recomputed = train_once(tiny(true), {batch}, true);
  EXPECT_EQ(kept.result.loss.loss, recomputed.result.loss.loss);
  for (size_t p = 0; p < kept.weights.size(); ++p) {
    EXPECT_TRUE(at::equal(kept.weights[p], recomputed.weights[p])) << "part " << p;
  }
}

TEST(TrainStep, MicroBatchesAddUpToTheBatch) {
  Batch both = random_batch({0, 40, 90}, 130, 3), first, second;
  auto cut = [&](int64_t begin, int64_t end, const std::vector<int64_t>& starts) {
    Batch part;
    for (auto [to, from] : {std::pair{&part.ids, &both.ids},
                            {&part.targets, &both.targets},
                            {&part.position, &both.position},
                            {&part.loss_weight, &both.loss_weight}}) {
      *to = from->slice(0, begin, end).contiguous();
    }
    part.docs = Documents::from_starts(starts, end - begin, at::kCPU);
    part.global_weight = both.global_weight;
    return part;
  };
  const Trained one = train_once(tiny(true), {both}, false);
  const Trained two = train_once(tiny(true), {cut(0, 90, {0, 40}), cut(90, 130, {0})}, false);
  EXPECT_NEAR(one.result.loss.loss, two.result.loss.loss, 1e-6);
  EXPECT_NEAR(one.result.grad_norm, two.result.grad_norm, 1e-5 * one.result.grad_norm);
}

TEST(TrainStep, NothingChangesWhenALossIsNotFinite) {
  Batch batch = random_batch({0}, 30, 4);
  batch.loss_weight[3] = std::numeric_limits<float>::quiet_NaN();
  const Trained trained = train_once(tiny(true), {batch}, false);
  EXPECT_FALSE(trained.result.finite);
  auto before = random_model(tiny(true), 5);
  for (size_t p = 0; p < trained.weights.size(); ++p) {
    EXPECT_TRUE(at::equal(trained.weights[p], before->parts()[p].flat)) << "part " << p;
  }
}

TEST(TrainStep, FrozenTensorsStayAndOthersMove) {
  OptimizerOptions options = optimizer_options();
  options.rules = {{"mlp", 1.0, true}, {"embed_tokens", 1.0, true}};
  const Trained trained = train_once(tiny(true), {random_batch({0}, 40, 6)}, false, options);
  auto before = random_model(tiny(true), 5);
  EXPECT_TRUE(at::equal(trained.weights[0], before->parts()[0].flat));
  for (int64_t l = 0; l < 3; ++l) {
    Weights after(block_layout(tiny(true), l), at::kFloat, at::kCPU);
    after.flat.copy_(trained.weights[1 + 2 * l]);
    const Weights& old = before->block(l);
    EXPECT_TRUE(at::equal(after["mlp.up_proj.weight"], old["mlp.up_proj.weight"]));
    EXPECT_FALSE(at::equal(after["input_layernorm.weight"], old["input_layernorm.weight"]));
  }
}

TEST(TrainStep, ARankWithoutRowsTakesPart) {
  const Trained trained = train_once(tiny(false), {}, false);
  EXPECT_EQ(trained.result.grad_norm, 0);
}

}  // namespace sala
