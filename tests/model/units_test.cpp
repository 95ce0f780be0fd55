// The written forward and backward of every unit and mixer: against autograd over the composition,
// against central differences, recomputed at every level, with frozen tensors, and without
// gradient.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "model/feed_forward.h"
#include "model/mixers/mixers.h"
#include "tests/model/composed.h"
#include "tests/model/differentiable_ops.h"
#include "tests/model/unit_cases.h"

namespace sala {
namespace {

constexpr double kTolerance = 1e-10;  // fp64

void expect_close(const at::Tensor& actual, const at::Tensor& expected, const std::string& what) {
  ASSERT_TRUE(actual.defined()) << what;
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what;
  const double error = (actual - expected).abs().max().item<double>();
  EXPECT_LE(error, kTolerance * (1 + expected.abs().max().item<double>())) << what;
}

void expect_close_parts(const Gradient& actual, const at::Tensor& expected, const Layout& layout,
                        const std::string& what) {
  for (size_t i = 0; i < layout.entries.size(); ++i) {
    const auto index = static_cast<int64_t>(i);
    expect_close(group_view(layout, actual.flat, index, index),
                 group_view(layout, expected, index, index), what + ": " + layout.entries[i].name);
  }
}

class Units : public ::testing::Test {
 protected:
  void SetUp() override { at::manual_seed(5); }

  struct Named {
    const char* name;
    Batch batch;
  };
  // Long documents select blocks where the layer is sparse.
  static std::vector<Named> batches() {
    std::vector<Named> list;
    list.push_back({"short", short_documents()});
    list.push_back({"long", long_documents()});
    list.push_back({"mixed", mixed_documents()});
    list.push_back({"one token", batch_of({1}, 19)});
    return list;
  }
};

at::Tensor run_block(HeldModel& held, const at::Tensor& x, const Env& env) {
  const Unit& unit = *held.model.units()[1];
  return unit.forward(held.weights.lease(unit.parts), x, env, nullptr);
}

// What a block gives and what flows back through it, recomputed at `level`.
struct Passed {
  at::Tensor y, dx;
  std::vector<Gradient> gradients;  // of block and mixer
  int64_t num_bytes = 0;            // kept between the passes
};

Passed pass(HeldModel& held, const at::Tensor& x, const at::Tensor& dy, const Env& env,
            Recompute level = Recompute::kNone) {
  const Unit& unit = *held.model.units()[1];
  Saved saved;
  saved.input = x;
  saved.will_forget = level;
  Passed out;
  const Lease lease = held.weights.lease(unit.parts);
  out.y = unit.forward(lease, x, env, &saved);
  const at::Tensor attention = saved.find("attention"), blocks = saved.find("blocks");
  saved.trim(level);
  out.num_bytes = saved.num_bytes();
  if (level != Recompute::kNone) {
    EXPECT_TRUE(saved.trimmed());
    EXPECT_FALSE(unit.forward(lease, x, env, &saved).defined());
    EXPECT_FALSE(saved.trimmed());
    if (held.model.config().mixers[0] != Mixer::kLightning) {  // neither is made again
      EXPECT_TRUE(saved.find("attention").is_same(attention));
      EXPECT_TRUE(!blocks.defined() || saved.find("blocks").is_same(blocks));
    }
  }
  out.gradients = HeldModel::gradients(held.model.layouts(), unit.parts, x.scalar_type());
  out.dx = unit.backward(lease, dy, env, saved, pointers(out.gradients));
  EXPECT_EQ(saved.num_bytes(), 0);  // used up
  return out;
}

TEST_F(Units, BlocksEqualAutogradOverTheComposition) {
  for (const UnitCase& unit_case : unit_cases()) {
    const ModelConfig& c = unit_case.config;
    for (const Named& named : batches()) {
      SCOPED_TRACE(unit_case.name + ", " + named.name);
      HeldModel held(c);
      const Env env = held.env(named.batch, /*sparse=*/true);
      const at::Tensor x = at::randn({named.batch.num_tokens(), c.width}, at::kDouble);
      const at::Tensor dy = at::randn_like(x);
      const Passed passed = pass(held, x, dy, env);

      const Leaves block(held.weights.parts()[1]), mixer(held.weights.parts()[2]);
      const at::Tensor input = x.clone().set_requires_grad(true);
      const at::Tensor y = composed_block(c, c.mixers[0], block, mixer, input, env);
      y.backward(dy);
      expect_close(passed.y, y.detach(), "y");
      expect_close(passed.dx, input.grad(), "dx");
      expect_close_parts(passed.gradients[0], block.flat_gradient(), *block.layout, "block");
      expect_close_parts(passed.gradients[1], mixer.flat_gradient(), *mixer.layout, "mixer");
    }
  }
}

TEST_F(Units,
       SparseLayersDifferFromDenseOnes) {  // or the tests above would show less than they say
  HeldModel held(small_config(Mixer::kSparse));
  const Batch batch = long_documents();
  const at::Tensor x = at::randn({batch.num_tokens(), 24}, at::kDouble);
  const Env sparse = held.env(batch, true), dense = held.env(batch, false);
  const at::Tensor y = pass(held, x, x, sparse).y, y_dense = pass(held, x, x, dense).y;
  EXPECT_GT((y - y_dense).abs().max().item<double>(), 1e-3);
}

// Along random directions in x and all weights at once.
TEST_F(Units, BlocksEqualCentralDifferences) {
  for (Mixer kind : {Mixer::kFull, Mixer::kSparse, Mixer::kLightning}) {
    SCOPED_TRACE(to_string(kind));
    HeldModel held(small_config(kind));
    const Batch batch = mixed_documents();
    const Env env = held.env(batch, true);
    const at::Tensor x = at::randn({batch.num_tokens(), 24}, at::kDouble);
    const at::Tensor dy = at::randn_like(x);
    const Passed passed = pass(held, x, dy, env);
    at::Tensor &block = held.weights.parts()[1].flat, &mixer = held.weights.parts()[2].flat;
    for (int turn = 0; turn < 5; ++turn) {
      const at::Tensor to_x = at::randn_like(x), to_block = at::randn_like(block);
      const at::Tensor to_mixer = at::randn_like(mixer);
      const auto value = [&](double step) {
        block.add_(to_block, step);
        mixer.add_(to_mixer, step);
        const at::Tensor y = run_block(held, x + step * to_x, env);
        block.add_(to_block, -step);
        mixer.add_(to_mixer, -step);
        return (y * dy).sum().item<double>();
      };
      constexpr double kStep = 1e-6;
      const double expected = (value(kStep) - value(-kStep)) / (2 * kStep);
      const double actual =
          ((passed.dx * to_x).sum() + (passed.gradients[0].flat * to_block).sum() +
           (passed.gradients[1].flat * to_mixer).sum())
              .item<double>();
      EXPECT_NEAR(actual, expected, 1e-6 * (1 + std::abs(expected)));
    }
  }
}

TEST_F(Units, RecomputeIsBitEqualAndKeepsLess) {
  for (at::ScalarType dtype : {at::kDouble, at::kFloat}) {
    for (const UnitCase& unit_case : unit_cases()) {
      for (const Named& named : batches()) {
        SCOPED_TRACE(unit_case.name + ", " + named.name);
        HeldModel held(unit_case.config, dtype);
        const Env env = held.env(named.batch, true);
        const at::Tensor x = at::randn({named.batch.num_tokens(), 24}, dtype);
        const at::Tensor dy = at::randn_like(x);
        const Passed none = pass(held, x, dy, env);
        int64_t num_bytes = none.num_bytes;
        for (Recompute level : {Recompute::kSelective, Recompute::kFull}) {
          const Passed again = pass(held, x, dy, env, level);
          EXPECT_TRUE(at::equal(again.dx, none.dx));
          for (size_t i = 0; i < 2; ++i) {
            EXPECT_TRUE(at::equal(again.gradients[i].flat, none.gradients[i].flat)) << i;
          }
          EXPECT_LT(again.num_bytes, num_bytes);
          num_bytes = again.num_bytes;
        }
      }
    }
  }
}

TEST_F(Units, ForwardWithoutGradientIsTheSame) {
  for (at::ScalarType dtype : {at::kDouble, at::kFloat}) {
    for (const UnitCase& unit_case : unit_cases()) {
      for (const Named& named : batches()) {
        SCOPED_TRACE(unit_case.name + ", " + named.name);
        HeldModel held(unit_case.config, dtype);
        const Env env = held.env(named.batch, true);
        const at::Tensor x = at::randn({named.batch.num_tokens(), 24}, dtype);
        const at::Tensor before = x.clone();
        EXPECT_TRUE(at::equal(run_block(held, x, env), pass(held, x, x, env).y));
        EXPECT_TRUE(at::equal(x, before));  // what is done in place is done to its own tensors
      }
    }
  }
}

TEST_F(Units, FrozenTensorsStayUntouched) {
  for (const UnitCase& unit_case : unit_cases()) {
    HeldModel held(unit_case.config);
    const Unit& unit = *held.model.units()[1];
    const Batch batch = short_documents();
    const Env env = held.env(batch, true);
    const at::Tensor x = at::randn({batch.num_tokens(), 24}, at::kDouble);
    const Passed all = pass(held, x, x, env);
    const Lease lease = held.weights.lease(unit.parts);
    for (int turn = 0; turn < 6; ++turn) {
      SCOPED_TRACE(unit_case.name + ", " + std::to_string(turn));
      Saved saved;
      saved.input = x;
      unit.forward(lease, x, env, &saved);
      std::vector<Gradient> gradients;
      for (size_t part : unit.parts) {
        const LayoutPtr& layout = held.model.layouts()[part];
        std::vector<bool> trains(layout->entries.size());
        for (size_t i = 0; i < trains.size(); ++i) trains[i] = turn > 0 && (i * 7 + turn) % 3 != 0;
        gradients.emplace_back(layout, at::full({layout->num_elements}, 7, at::kDouble), trains);
      }
      EXPECT_TRUE(at::equal(unit.backward(lease, x, env, saved, pointers(gradients)), all.dx));
      for (size_t part = 0; part < 2; ++part) {
        const Layout& layout = *held.model.layouts()[unit.parts[part]];
        for (size_t i = 0; i < layout.entries.size(); ++i) {
          const auto index = static_cast<int64_t>(i);
          const std::string& name = layout.entries[i].name;
          const at::Tensor g = group_view(layout, gradients[part].flat, index, index);
          if (gradients[part].wants(name)) {
            expect_close(g, group_view(layout, all.gradients[part].flat, index, index) + 7, name);
          } else {
            EXPECT_TRUE(g.eq(7).all().item<bool>()) << name;
          }
        }
      }
    }
  }
}

TEST_F(Units, MixersAloneEqualTheComposition) {  // as align runs them
  for (const UnitCase& unit_case : unit_cases()) {
    SCOPED_TRACE(unit_case.name);
    const ModelConfig& c = unit_case.config;
    HeldModel held(c);
    const Batch batch = mixed_documents();
    const Env env = held.env(batch, true);
    const at::Tensor x = at::randn({batch.num_tokens(), c.width}, at::kDouble);
    const at::Tensor dy = at::randn_like(x);
    Saved saved;
    MixerCall call{c, held.weights.parts()[2], env, 0, &saved};
    const at::Tensor y = mixer_forward(c.mixers[0], call, x);
    std::vector<Gradient> gradient = HeldModel::gradients(held.model.layouts(), {2}, at::kDouble);
    call.wants_dx = false;
    EXPECT_FALSE(mixer_backward(c.mixers[0], call, dy, gradient[0]).defined());

    const Leaves leaves(held.weights.parts()[2]);
    const at::Tensor expected = composed_mixer(c, c.mixers[0], leaves, x, env);
    expected.backward(dy);
    expect_close(y, expected.detach(), "y");
    expect_close_parts(gradient[0], leaves.flat_gradient(), *leaves.layout, "mixer");
  }
}

TEST_F(Units, TheTapSeesTheFirstForwardOnly) {
  HeldModel held(small_config(Mixer::kLightning));
  const Batch batch = short_documents();
  Env env = held.env(batch, true);
  int calls = 0;
  const MixerTap tap = [&](int64_t layer, const at::Tensor& input, const at::Tensor& attention,
                           const at::Tensor& output) {
    ++calls;
    EXPECT_EQ(layer, 0);
    EXPECT_EQ(input.sizes(), at::IntArrayRef({37, 24}));
    EXPECT_EQ(attention.sizes(), at::IntArrayRef({37, 32}));
    EXPECT_EQ(output.sizes(), at::IntArrayRef({37, 24}));
  };
  env.tap = &tap;
  const at::Tensor x = at::randn({37, 24}, at::kDouble);
  pass(held, x, x, env, Recompute::kFull);
  EXPECT_EQ(calls, 1);
}

TEST_F(Units, EmbeddingGradientIsTheSumOverTokens) {
  HeldModel held(small_config(Mixer::kFull));
  const Batch batch = mixed_documents();  // every id many times
  const Env env = held.env(batch, false);
  const Unit& unit = *held.model.units()[0];
  const Lease lease = held.weights.lease(unit.parts);
  Saved saved;
  const at::Tensor y = unit.forward(lease, {}, env, &saved);
  EXPECT_EQ(saved.num_bytes(), 0);
  const at::Tensor dy = at::randn_like(y);
  std::vector<Gradient> gradients =
      HeldModel::gradients(held.model.layouts(), unit.parts, at::kDouble, 7);  // a tied head's
  EXPECT_FALSE(unit.backward(lease, dy, env, saved, pointers(gradients)).defined());

  const Leaves leaves(held.weights.parts()[0]);
  const at::Tensor expected = at::embedding(leaves.tensors[0], batch.ids) * 3.0;
  expected.backward(dy);
  expect_close(y, expected.detach(), "y");
  expect_close(gradients[0].view("embed_tokens.weight"), leaves.tensors[0].grad() + 7, "dw");

  std::vector<Gradient> frozen(1);
  EXPECT_FALSE(unit.backward(lease, dy, env, saved, pointers(frozen)).defined());
}

TEST_F(Units, FinalNormEqualsAutograd) {
  HeldModel held(small_config(Mixer::kFull));
  const Unit& unit = held.model.final_norm();
  const at::Tensor x = at::randn({9, 24}, at::kDouble), dy = at::randn_like(x);
  const Leaves leaves(held.weights.parts()[3]);
  const at::Tensor input = x.clone().set_requires_grad(true);
  rmsnorm(input, leaves["norm.weight"], 1e-5).backward(dy);
  for (Recompute level : {Recompute::kNone, Recompute::kFull}) {
    Saved saved;
    saved.input = x;
    const Lease lease = held.weights.lease(held.model.head_parts());
    unit.forward(lease, x, {}, &saved);
    saved.trim(level);
    if (saved.trimmed()) unit.forward(lease, x, {}, &saved);
    std::vector<Gradient> gradients =
        HeldModel::gradients(held.model.layouts(), unit.parts, at::kDouble);
    expect_close(unit.backward(lease, dy, {}, saved, pointers(gradients)), input.grad(), "dx");
    expect_close(gradients[0].view("model.norm.weight"), leaves["norm.weight"].grad(), "dw");
  }
}

TEST_F(Units, LongRowsTakeTheFeedForwardPartInTilesWhereItIsMadeAgain) {
  HeldModel held(small_config(Mixer::kLightning));
  const ModelConfig& c = held.model.config();
  const Batch batch = batch_of({kFeedForwardTile - 500, 501, kFeedForwardTile + 36}, 19);
  const Env env = held.env(batch, true);
  const int64_t T = batch.num_tokens();
  ASSERT_LE(feed_forward_tokens(T, false), kFeedForwardTile);
  ASSERT_NE(T % feed_forward_tokens(T, false), 0) << "a last tile of another size";
  const at::Tensor x = at::randn({T, c.width}, at::kDouble), dy = at::randn_like(x);
  const Passed whole = pass(held, x, dy, env), tiles = pass(held, x, dy, env, Recompute::kFull);
  expect_close(tiles.y, whole.y, "y");
  expect_close(run_block(held, x.clone(), env), whole.y, "y without gradient");
  expect_close(tiles.dx, whole.dx, "dx");
  for (size_t part = 0; part < 2; ++part) {
    expect_close(tiles.gradients[part].flat, whole.gradients[part].flat, "gradients");
  }

  Saved saved;
  saved.input = x;
  saved.will_forget = Recompute::kFull;
  const Unit& unit = *held.model.units()[1];
  const Lease lease = held.weights.lease(unit.parts);
  unit.forward(lease, x, env, &saved);
  saved.trim(Recompute::kFull);
  unit.forward(lease, x, env, &saved);
  EXPECT_TRUE(saved.find("mlp_input").defined());
  EXPECT_FALSE(saved.find("gate_up").defined());
  EXPECT_FALSE(saved.find("act").defined());
}

TEST_F(Units, ABackwardWithoutItsForwardIsRefused) {
  HeldModel held(small_config(Mixer::kSparse));
  const Unit& unit = *held.model.units()[1];
  const Batch batch = short_documents();
  const Env env = held.env(batch, true);
  const at::Tensor x = at::randn({37, 24}, at::kDouble);
  const Lease lease = held.weights.lease(unit.parts);
  Saved saved;
  saved.input = x;
  unit.forward(lease, x, env, &saved);
  saved.trim(Recompute::kSelective);
  std::vector<Gradient> gradients(2);
  EXPECT_THROW(unit.backward(lease, x, env, saved, pointers(gradients)), c10::Error);
}

}  // namespace
}  // namespace sala
