// The memory plan's list of what a block keeps is the list that its forward pass makes.
#include "model/kept_tensors.h"

#include <gtest/gtest.h>

#include "model/model.h"

namespace sala {

namespace {

ModelConfig tiny(Mixer mixer, bool qk_norm) {
  ModelConfig c;
  c.family = mixer == Mixer::kFull ? "llama" : "minicpm_sala";
  c.num_layers = 1;
  c.width = 48;
  c.ffn_width = 80;
  c.vocab_size = 40;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.lightning_kv_heads = 4;
  c.head_size = 16;
  c.max_position = 1024;
  c.full_qk_norm = c.sparse_qk_norm = c.lightning_qk_norm = qk_norm;
  c.sparse = {8, 4, 1, 16, 32, 2, 64};
  c.mixers = {mixer};
  return c;
}

void expect_planned(const ModelConfig& c, int64_t tokens) {
  const Model model(c);
  HeldWeights weights(model.layouts(), at::kFloat, at::kCPU);
  for (Weights& part : weights.parts()) part.flat.fill_(0.01);
  const Batch batch = single_document(std::vector<int64_t>(tokens, 3), 0, at::kCPU);
  const Env env = model.env(batch, true);
  const Mixer mixer = c.mixers[0];
  const PassShape shape{tokens, 4, tokens >= c.sparse.dense_len};
  for (Recompute level : {Recompute::kNone, Recompute::kSelective, Recompute::kFull}) {
    Saved saved;
    saved.input = at::randn({tokens, c.width});
    const Unit& block = *model.units()[1];
    block.forward(weights.lease(block.parts), saved.input, env, &saved);
    if (level == Recompute::kNone) {
      for (const KeptTensor& planned : kept_tensors(c, mixer, shape)) {
        const at::Tensor kept = saved.find(planned.name);
        ASSERT_TRUE(kept.defined()) << planned.name;
        EXPECT_EQ(static_cast<int64_t>(kept.nbytes()), planned.num_bytes) << planned.name;
      }
    }
    saved.trim(level);
    EXPECT_EQ(saved.num_bytes() + static_cast<int64_t>(saved.input.nbytes()),
              kept_bytes(c, mixer, shape, level));
  }
}

}  // namespace

TEST(KeptTensors, ArePlannedAsTheyAreKept) {
  for (Mixer mixer : {Mixer::kFull, Mixer::kSparse, Mixer::kLightning}) {
    for (bool qk_norm : {false, true}) {
      for (int64_t tokens : {37, 150}) {
        SCOPED_TRACE(testing::Message() << "mixer " << static_cast<int>(mixer) << ", QK-norm "
                                        << qk_norm << ", " << tokens << " tokens");
        expect_planned(tiny(mixer, qk_norm), tokens);
      }
    }
  }
}

}  // namespace sala
