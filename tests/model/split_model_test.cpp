// Whole models on a line of tokens that ranks (threads here) share: every unit's forward and
// backward against the same model on the whole line, recomputed or not.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <vector>

#include "model/forward.h"
#include "model/generation/cache.h"
#include "model/model.h"
#include "tests/kernels/tolerance.h"
#include "tests/model/thread_comm.h"

namespace sala::test {
namespace {

ModelConfig small_model(std::vector<Mixer> mixers) {
  ModelConfig c;
  c.family = "llama";
  c.num_layers = static_cast<int64_t>(mixers.size());
  c.width = 24, c.ffn_width = 40, c.vocab_size = 31;
  c.num_heads = 4, c.num_kv_heads = 2, c.lightning_kv_heads = 2, c.head_size = 8;
  c.max_position = 256;
  c.full_qk_norm = true;
  c.residual_scale = 0.8;
  c.rope.kind = RopeConfig::Kind::kLongrope;  // short and long documents rotate differently
  c.rope.original_max_position = 64;
  c.rope.short_factor = {1.0, 1.1, 1.2, 1.3};
  c.rope.long_factor = {1.5, 2.0, 3.0, 4.0};
  c.lightning_rope_config = c.rope;
  c.sparse.kernel_stride = 2, c.sparse.kernel_size = 4, c.sparse.block_size = 8;
  c.sparse.window_size = 16, c.sparse.topk = 3, c.sparse.init_blocks = 1;
  c.sparse.dense_len = 64;
  c.mixers = std::move(mixers);
  return c;
}

ModelConfig dense_model() { return small_model({Mixer::kFull, Mixer::kFull}); }
ModelConfig hybrid_model() {
  return small_model({Mixer::kLightning, Mixer::kSparse, Mixer::kLightning, Mixer::kFull});
}

HeldWeights random_weights(const Model& model) {
  at::manual_seed(3);
  HeldWeights held(model.layouts(), at::kDouble, at::kCPU);
  for (Weights& part : held.parts()) {
    part.flat.normal_().mul_(0.2);
    for (size_t i = 0; i < part.layout().entries.size(); ++i) {
      if (part.layout().entries[i].init == Init::kOnes) at::Tensor(part.views()[i]).add_(1);
    }
  }
  return held;
}

struct ModelLine {
  std::vector<int64_t> starts;
  int64_t num_tokens;
};

// Borders inside documents, on their starts, documents over three shards and more, odd lengths,
// short (dense) documents beside long (sparse) ones, and no border crossed.
const std::vector<ModelLine> kModelLines = {
    {{0}, 97},
    {{0, 30, 31, 64, 200}, 257},
    {{0, 10, 110}, 121},
    {{0, 30, 40, 60, 80, 90}, 120},
};

Batch line_batch(const ModelLine& line, int64_t vocab_size) {
  Batch batch;
  batch.ids = at::randint(vocab_size, {line.num_tokens}, at::kLong);
  batch.position = at::empty_like(batch.ids);
  batch.docs = Documents::from_starts(line.starts, line.num_tokens, at::kCPU);
  for (int64_t d = 0; d < batch.docs.count(); ++d) {
    batch.position.narrow(0, batch.docs.offsets[d], batch.docs.length(d))
        .copy_(at::arange(batch.docs.length(d), at::kLong));
  }
  return batch;
}

// Of the rows of one rank: (T, C) each. And the weights' gradients, a flat for every part.
struct Pass {
  std::vector<at::Tensor> rows;  // every unit's output, the final norm's, dx of every unit
  std::vector<at::Tensor> gradients;
};

Env exact_env(const Model& model, const Batch& batch) {
  Env env = model.env(batch, /*sparse=*/true);
  for (RopeTable* table : {&env.full_rope, &env.lightning_rope}) {
    if (!table->cos.defined()) continue;
    table->cos = table->cos.to(at::kDouble);
    table->sin = table->sin.to(at::kDouble);
  }
  return env;
}

Pass forward_and_backward(const Model& model, HeldWeights& weights, const Batch& batch,
                          const at::Tensor& d_hidden, Recompute recompute) {
  Pass pass;
  const Env env = exact_env(model, batch);
  std::vector<Gradient> gradients;
  for (const LayoutPtr& layout : model.layouts()) {
    pass.gradients.push_back(at::zeros({layout->num_elements}, at::kDouble));
    gradients.emplace_back(layout, pass.gradients.back(),
                           std::vector<bool>(layout->entries.size(), true));
  }
  const auto sums_of = [&](const Unit& unit) {
    std::vector<Gradient*> sums;
    for (size_t part : unit.parts) sums.push_back(&gradients[part]);
    return sums;
  };
  std::vector<const Unit*> units;
  for (const auto& unit : model.units()) units.push_back(unit.get());
  units.push_back(&model.final_norm());

  std::vector<Saved> saved(units.size());
  at::Tensor x;
  for (size_t u = 0; u < units.size(); ++u) {
    saved[u].input = x;
    x = units[u]->forward(weights.lease(units[u]->parts), x, env, &saved[u]);
    saved[u].trim(recompute);
    pass.rows.push_back(x);
  }
  at::Tensor dx = d_hidden;
  for (size_t u = units.size(); u-- > 0;) {
    const Lease lease = weights.lease(units[u]->parts);
    if (saved[u].trimmed()) units[u]->forward(lease, saved[u].input, env, &saved[u]);
    dx = units[u]->backward(lease, dx, env, saved[u], sums_of(*units[u]));
    if (dx.defined()) pass.rows.push_back(dx);
  }
  return pass;
}

// Rows of all ranks, gradients summed over them.
Pass split_pass(const Model& model, HeldWeights& weights, const Batch& line,
                const at::Tensor& d_hidden, int num_ranks, Recompute recompute) {
  std::vector<Pass> parts(num_ranks);
  on_ranks(num_ranks, [&](ThreadComm& comm) {
    const Batch batch = make_shard(line, comm);
    const at::Tensor d_own = d_hidden.slice(0, batch.shard->begin(), batch.shard->end());
    Pass& pass = parts[comm.rank()];
    pass = forward_and_backward(model, weights, batch, d_own.contiguous(), recompute);
    // As a teacher runs it.
    const at::Tensor alone = hidden(model, weights, exact_env(model, batch));
    EXPECT_TRUE(close(alone, pass.rows[model.units().size()], {1e-12, 1e-12, 1e-12}));
  });
  Pass whole;
  for (size_t i = 0; i < parts[0].rows.size(); ++i) {
    std::vector<at::Tensor> pieces;
    for (const Pass& part : parts) pieces.push_back(part.rows[i]);
    whole.rows.push_back(at::cat(pieces));
  }
  whole.gradients = parts[0].gradients;
  for (int r = 1; r < num_ranks; ++r) {
    for (size_t p = 0; p < whole.gradients.size(); ++p) {
      whole.gradients[p].add_(parts[r].gradients[p]);
    }
  }
  return whole;
}

void expect_split_equals_whole(const ModelConfig& config) {
  const Model model(config);
  HeldWeights weights = random_weights(model);
  const Tolerance limit{1e-10, 1e-10, 1e-10};
  for (const ModelLine& line : kModelLines) {
    const Batch batch = line_batch(line, config.vocab_size);
    const at::Tensor d_hidden = at::randn({line.num_tokens, config.width}, at::kDouble);
    Pass expected;
    {
      const at::NoGradGuard no_grad;
      expected = forward_and_backward(model, weights, batch, d_hidden, Recompute::kNone);
    }
    for (int R = 1; R <= 4; ++R) {
      const Pass got = split_pass(model, weights, batch, d_hidden, R, Recompute::kNone);
      SCOPED_TRACE(::testing::Message() << line.num_tokens << " tokens, " << R << " ranks");
      ASSERT_EQ(got.rows.size(), expected.rows.size());
      for (size_t i = 0; i < got.rows.size(); ++i) {
        EXPECT_TRUE(close(got.rows[i], expected.rows[i], limit)) << "rows " << i;
      }
      for (size_t p = 0; p < got.gradients.size(); ++p) {
        EXPECT_TRUE(close(got.gradients[p], expected.gradients[p], limit))
            << model.layouts()[p]->name;
      }
      for (const Recompute recompute : {Recompute::kSelective, Recompute::kFull}) {
        const Pass again = split_pass(model, weights, batch, d_hidden, R, recompute);
        for (size_t i = 0; i < got.rows.size(); ++i) {
          EXPECT_TRUE(bit_equal(again.rows[i], got.rows[i])) << "recomputed, rows " << i;
        }
        for (size_t p = 0; p < got.gradients.size(); ++p) {
          EXPECT_TRUE(bit_equal(again.gradients[p], got.gradients[p]))
              << "recomputed, " << model.layouts()[p]->name;
        }
      }
    }
  }
}

// Changing every token of one document changes no bit of another's hidden states and gradients.
void expect_documents_apart(const ModelConfig& config) {
  const Model model(config);
  HeldWeights weights = random_weights(model);
  for (const ModelLine& line : kModelLines) {
    if (line.starts.size() == 1) continue;
    const Batch batch = line_batch(line, config.vocab_size);
    const at::Tensor d_hidden = at::randn({line.num_tokens, config.width}, at::kDouble);
    for (int R = 1; R <= 4; ++R) {
      const Pass before = split_pass(model, weights, batch, d_hidden, R, Recompute::kNone);
      for (int64_t d = 0; d < batch.docs.count(); ++d) {
        const int64_t begin = batch.docs.offsets[d], end = batch.docs.offsets[d + 1];
        Batch other = batch;
        other.ids = batch.ids.clone();
        other.ids.slice(0, begin, end).add_(7).remainder_(config.vocab_size);
        at::Tensor d_other = d_hidden.clone();
        d_other.slice(0, begin, end).mul_(-3).add_(1);
        const Pass after = split_pass(model, weights, other, d_other, R, Recompute::kNone);
        for (size_t i = 0; i < before.rows.size(); ++i) {
          SCOPED_TRACE(::testing::Message() << line.num_tokens << " tokens, " << R << " ranks, "
                                            << "document " << d << ", rows " << i);
          const at::Tensor &a = after.rows[i], &b = before.rows[i];
          EXPECT_TRUE(bit_equal(a.slice(0, 0, begin), b.slice(0, 0, begin)));
          EXPECT_TRUE(bit_equal(a.slice(0, end), b.slice(0, end)));
          EXPECT_FALSE(at::equal(a.slice(0, begin, end), b.slice(0, begin, end)));
        }
      }
    }
  }
}

TEST(SplitModel, DenseEqualsTheWholeLine) { expect_split_equals_whole(dense_model()); }
TEST(SplitModel, HybridEqualsTheWholeLine) { expect_split_equals_whole(hybrid_model()); }
TEST(SplitModel, DenseKeepsDocumentsApart) { expect_documents_apart(dense_model()); }
TEST(SplitModel, HybridKeepsDocumentsApart) { expect_documents_apart(hybrid_model()); }

TEST(SplitModel, RefusesToDecode) {
  const Model model(hybrid_model());
  const Batch line = line_batch({{0}, 8}, 31);
  on_ranks(2, [&](ThreadComm& comm) {
    const Batch batch = make_shard(line, comm);
    DecodeCache cache(model.config(), {.num_sequences = 1, .capacity = 8});
    const CachePass pass{.cache = cache};
    EXPECT_THROW(model.env(batch, true, &pass), c10::Error);
  });
}

}  // namespace
}  // namespace sala::test
