// The training step against slopes of the loss, and against itself in other shapes.
#include "trainer/step.h"

#include <gtest/gtest.h>

#include "model/forward.h"
#include "model/weights/parts.h"
#include "trainer/batches.h"

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

// Two ranks' worth of communicators where there is one rank: none does anything.
struct Alone {
  std::unique_ptr<Comm> comm = make_single_comm();
  ParameterComms comms() { return {comm.get(), comm.get()}; }
};

std::unique_ptr<Network> random_network(const ModelConfig& config, Alone& alone,
                                        at::ScalarType dtype = at::kFloat) {
  Parameters::Options options;
  options.dtype = dtype;
  options.trains = true;
  auto network = std::make_unique<Network>(config, options, alone.comms());
  at::Generator generator = at::detail::createCPUGenerator(5);
  for (size_t p = 0; p < network->parameters.num_parts(); ++p) {
    Weights part(network->parameters.layout(p), dtype, at::kCPU);
    for (size_t i = 0; i < part.views().size(); ++i) {
      at::Tensor view = part.views()[i];
      view.copy_(at::randn(view.sizes(), generator, dtype) * 0.2 +
                 (part.layout().entries[i].init == Init::kOnes ? 1.0 : 0.0));
    }
    network->parameters.set_whole(p, part.flat);
  }
  return network;
}

std::vector<at::Tensor> whole_parts(Parameters& parameters) {
  std::vector<at::Tensor> parts;
  for (size_t p = 0; p < parameters.num_parts(); ++p) parts.push_back(parameters.whole(p).clone());
  return parts;
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

Trained train_once(const ModelConfig& config, const std::vector<Batch>& batches,
                   Recompute recompute = Recompute::kNone,
                   const OptimizerOptions& options = optimizer_options(), bool accepted = true,
                   InputOffload* offload = nullptr) {
  Alone alone;
  auto network = random_network(config, alone);
  Optimizer optimizer(network->parameters, options);
  NextTokenLoss loss;
  Trained out;
  out.result = take_step(
      batches,
      [&](const Batch& batch, bool last) {
        return model_passes(*network, loss, batch, last,
                            {.recompute = recompute, .offload = offload});
      },
      network->parameters, optimizer, *alone.comm,
      {.lr = options.schedule.lr, .accepts = [&](const StepResult&) { return accepted; }});
  out.weights = whole_parts(network->parameters);
  return out;
}

double loss_of(Network& network, const Batch& batch) {
  const at::NoGradGuard no_grad;
  const at::Tensor x = hidden(network.model, network.parameters, network.model.env(batch, true));
  const Lease head = network.parameters.lease(network.model.head_parts());
  const at::Tensor weight = batch.loss_weight.to(at::kDouble) / batch.global_weight;
  return linear_cross_entropy(x, network.model.head_weight(head), batch.targets, weight,
                              network.model.config().logit_scale)
      .loss_sum.item<double>();
}

}  // namespace

// In fp64, part by part, along a random direction: the slope of the loss is <gradient, direction>.
TEST(ModelPasses, GradientsAreTheSlopesOfTheLoss) {
  for (bool tied : {true, false}) {
    Alone alone;
    ModelConfig config = tiny(tied);
    config.lightning_rope = false;  // whose tables are fp32
    auto network = random_network(config, alone, at::kDouble);
    Parameters& parameters = network->parameters;
    std::vector<std::vector<bool>> all;
    for (size_t p = 0; p < parameters.num_parts(); ++p) {
      all.emplace_back(parameters.layout(p)->entries.size(), true);
    }
    parameters.train(all);
    const Batch batch = random_batch({0, 5, 6, 20}, 60, 1);  // all dense: no list jumps
    NextTokenLoss loss;
    const at::NoGradGuard no_grad;
    model_passes(*network, loss, batch, true, {});
    parameters.finish_reductions();
    constexpr double kStep = 1e-5;
    for (size_t p = 0; p < parameters.num_parts(); ++p) {
      const at::Tensor w = parameters.whole(p).clone();
      const at::Tensor direction = at::randn_like(w);
      parameters.set_whole(p, w + kStep * direction);
      const double up = loss_of(*network, batch);
      parameters.set_whole(p, w - kStep * direction);
      const double down = loss_of(*network, batch);
      parameters.set_whole(p, w);
      // Padding between tensors has no gradient.
      const double slope = (parameters.share(p).grad * direction).sum().item<double>();
      EXPECT_NEAR(slope, (up - down) / (2 * kStep), 1e-6 * std::max(1.0, std::abs(slope)))
          << parameters.layout(p)->name << (tied ? ", tied" : "");
    }
  }
}

TEST(TrainStep, RecomputingChangesNoBit) {
  const Batch batch = random_batch({0, 70, 71}, 150, 2);
  const Trained kept = train_once(tiny(true), {batch});
  for (Recompute level : {Recompute::kSelective, Recompute::kFull}) {
    const Trained recomputed = train_once(tiny(true), {batch}, level);
    EXPECT_EQ(kept.result.losses, recomputed.result.losses);
    for (size_t p = 0; p < kept.weights.size(); ++p) {
      EXPECT_TRUE(at::equal(kept.weights[p], recomputed.weights[p])) << "part " << p;
    }
  }
}

// Micro-batches of different lengths through the same memory.
TEST(TrainStep, InputsThatWaitElsewhereChangeNoBit) {
  const std::vector<Batch> batches = {random_batch({0, 70, 71}, 150, 2), random_batch({0}, 40, 3)};
  const Trained kept = train_once(tiny(true), batches, Recompute::kFull);
  InputOffload offload(at::kCPU);
  const Trained offloaded =
      train_once(tiny(true), batches, Recompute::kFull, optimizer_options(), true, &offload);
  EXPECT_GT(offload.num_host_bytes(), 0);
  EXPECT_EQ(kept.result.losses, offloaded.result.losses);
  for (size_t p = 0; p < kept.weights.size(); ++p) {
    EXPECT_TRUE(at::equal(kept.weights[p], offloaded.weights[p])) << "part " << p;
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
  const Trained one = train_once(tiny(true), {both});
  const Trained two = train_once(tiny(true), {cut(0, 90, {0, 40}), cut(90, 130, {0})});
  EXPECT_NEAR(one.result.losses[kLoss], two.result.losses[kLoss], 1e-6);
  EXPECT_NEAR(one.result.grad_norm, two.result.grad_norm, 1e-5 * one.result.grad_norm);
}

TEST(TrainStep, NothingChangesWhenAStepIsNotAccepted) {
  const Batch batch = random_batch({0}, 30, 4);
  const auto train = [&](bool accepted) {
    return train_once(tiny(true), {batch}, Recompute::kNone, optimizer_options(), accepted);
  };
  const Trained refused = train(false), taken = train(true);
  EXPECT_TRUE(refused.result.finite && !refused.result.updated && taken.result.updated);
  EXPECT_EQ(refused.result.losses, taken.result.losses);
  Alone alone;
  const auto before = whole_parts(random_network(tiny(true), alone)->parameters);
  bool changed = false;
  for (size_t p = 0; p < before.size(); ++p) {
    EXPECT_TRUE(at::equal(refused.weights[p], before[p])) << "part " << p;
    changed = changed || !at::equal(taken.weights[p], before[p]);
  }
  EXPECT_TRUE(changed);
}

TEST(TrainStep, NothingChangesWhenALossIsNotFinite) {
  Batch batch = random_batch({0}, 30, 4);
  batch.loss_weight[3] = std::numeric_limits<float>::quiet_NaN();
  const Trained trained = train_once(tiny(true), {batch});
  EXPECT_FALSE(trained.result.finite);
  Alone alone;
  const auto before = whole_parts(random_network(tiny(true), alone)->parameters);
  for (size_t p = 0; p < trained.weights.size(); ++p) {
    EXPECT_TRUE(at::equal(trained.weights[p], before[p])) << "part " << p;
  }
}

TEST(TrainStep, FrozenTensorsStayAndOthersMove) {
  OptimizerOptions options = optimizer_options();
  options.rules = {{"mlp", 1.0, true}, {"embed_tokens", 1.0, true}};
  const Trained trained =
      train_once(tiny(true), {random_batch({0}, 40, 6)}, Recompute::kNone, options);
  Alone alone;
  const auto before = whole_parts(random_network(tiny(true), alone)->parameters);
  EXPECT_TRUE(at::equal(trained.weights[0], before[0]));
  for (int64_t l = 0; l < 3; ++l) {
    const auto layout = std::make_shared<const Layout>(block_layout(tiny(true), l));
    const Weights after(layout, trained.weights[Model::block_part(l)]);
    const Weights old(layout, before[Model::block_part(l)]);
    EXPECT_TRUE(at::equal(after["mlp.up_proj.weight"], old["mlp.up_proj.weight"]));
    EXPECT_FALSE(at::equal(after["input_layernorm.weight"], old["input_layernorm.weight"]));
  }
}

TEST(TrainStep, ARankWithoutRowsTakesPart) {
  const Trained trained = train_once(tiny(false), {idle_batch({.global_weight = 10}, at::kCPU)});
  EXPECT_EQ(trained.result.grad_norm, 0);
  EXPECT_EQ(trained.result.losses[kLoss], 0);
}

}  // namespace sala
