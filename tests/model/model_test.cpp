// Whole models without gradient: parts and their numbers, hidden states and logits through leases,
// documents that go on on other ranks.
#include "model/model.h"

#include <gtest/gtest.h>

#include "model/forward.h"
#include "tests/model/composed.h"
#include "tests/model/differentiable_ops.h"
#include "tests/model/unit_cases.h"

namespace sala {
namespace {

ModelConfig hybrid(bool tied) {
  ModelConfig c = small_config(Mixer::kSparse);
  c.num_layers = 3;
  c.mixers = {Mixer::kSparse, Mixer::kLightning, Mixer::kFull};
  c.tied_head = tied;
  return c;
}

// Writes down what was asked for.
class Counting : public Lender {
 public:
  explicit Counting(HeldWeights& held) : held_(held) {}
  using Lender::lease;
  Lease lease(std::span<const size_t> parts) override {
    leases.emplace_back(parts.begin(), parts.end());
    most_open = std::max(most_open, ++open);
    std::vector<const Weights*> weights;
    for (size_t part : parts) weights.push_back(&held_.parts()[part]);
    return Lease(std::move(weights), [this] { --open; });
  }
  void hint(std::span<const size_t> parts) override {
    hints.emplace_back(parts.begin(), parts.end());
  }

  std::vector<std::vector<size_t>> leases, hints;
  int open = 0, most_open = 0;

 private:
  HeldWeights& held_;
};

class WholeModel : public ::testing::Test {
 protected:
  void SetUp() override { at::manual_seed(8); }
};

TEST_F(WholeModel, PartsAreNumberedInOnePlace) {
  for (bool tied : {false, true}) {
    const Model model(hybrid(tied));
    ASSERT_EQ(model.layouts().size(), 8u);
    EXPECT_EQ(model.layouts()[model.embedding_part()]->name, "embed");
    EXPECT_EQ(model.layouts()[model.block_part(2)]->name, "layers.2.block");
    EXPECT_EQ(model.layouts()[model.mixer_part(1)]->name, "layers.1.mixer");
    EXPECT_EQ(model.layouts()[model.head_part()]->name, "head");
    EXPECT_EQ(model.units().size(), 4u);
    EXPECT_EQ(model.head_weight_part(), tied ? 0u : 7u);
    const Layout& layout = *model.layouts()[model.head_weight_part()];
    EXPECT_GE(layout.index(model.head_weight_name()), 0);
  }
}

TEST_F(WholeModel, HiddenStatesAndLogitsEqualTheComposition) {
  for (bool tied : {false, true}) {
    const ModelConfig c = hybrid(tied);
    HeldModel held(c);
    const Batch batch = mixed_documents();
    const Env env = held.env(batch, true);
    std::vector<Leaves> parts;
    for (const Weights& part : held.weights.parts()) parts.emplace_back(part);
    const at::NoGradGuard no_grad;
    at::Tensor x = at::embedding(parts[0].tensors[0], batch.ids) * 3.0;
    for (int64_t l = 0; l < 3; ++l) {
      x = composed_block(c, c.mixers[l], parts[1 + 2 * l], parts[2 + 2 * l], x, env);
    }
    x = rmsnorm(x, parts[7]["norm.weight"], c.rms_eps);
    const at::Tensor head = tied ? parts[0].tensors[0] : parts[7]["lm_head.weight"];

    Counting lender(held.weights);
    const at::Tensor y = hidden(held.model, lender, env);
    EXPECT_LE((y - x).abs().max().item<double>(), 1e-10);
    EXPECT_EQ(lender.open, 0);
    EXPECT_EQ(lender.most_open, 1);
    ASSERT_EQ(lender.leases.size(), 5u);  // embedding, blocks, final norm
    ASSERT_EQ(lender.hints.size(), 4u);
    for (size_t u = 0; u < 4; ++u) EXPECT_EQ(lender.hints[u], lender.leases[u + 1]) << u;
    const at::Tensor z = logits(held.model, lender, y);
    EXPECT_LE((z - at::linear(x, head) * 0.5).abs().max().item<double>(), 1e-10);
    EXPECT_EQ(lender.open, 0);
  }
}

TEST_F(WholeModel, DocumentsOfAShardKnowTheirWholeLength) {
  const auto comm = make_single_comm();
  auto shard = std::make_shared<SequenceShard>();
  shard->comm = comm.get();
  shard->borders = {0, 10};
  shard->whole = Documents::from_starts({0, 4}, 25, at::kCPU);  // the second goes on to 25
  Batch batch = batch_of({4, 6}, 19);
  EXPECT_EQ(batch.document_length(1), 6);
  EXPECT_EQ(batch.longest_document(), 6);
  batch.shard = shard;
  EXPECT_EQ(batch.document_length(0), 4);
  EXPECT_EQ(batch.document_length(1), 21);
  EXPECT_EQ(batch.longest_document(), 21);
}

}  // namespace
}  // namespace sala
