// What the new mixers start from: heads expanded head by head, gates that change nothing, norms and
// biases as the recipe and the format say.
#include "model/convert.h"

#include <gtest/gtest.h>

#include "model/families/families.h"
#include "model/mixers/mixers.h"
#include "model/model.h"
#include "model/weights/parts.h"

namespace sala {

namespace {

ModelConfig source_config(bool qk_norm, bool bias) {
  ModelConfig c;
  c.family = "qwen3";
  c.num_layers = 3;
  c.width = 48;
  c.ffn_width = 64;
  c.vocab_size = 30;
  c.num_heads = 6;
  c.num_kv_heads = 2;
  c.lightning_kv_heads = 2;
  c.head_size = 32;
  c.max_position = 128;
  c.full_qk_norm = qk_norm;
  c.qkv_bias = bias;
  c.rope.theta = 5000;
  c.mixers.assign(3, Mixer::kFull);
  return c;
}

Weights random_mixer(const ModelConfig& c, Mixer mixer) {
  Weights w(mixer_layout(c, 1, mixer), at::kFloat, at::kCPU);
  w.flat.copy_(at::sin(at::arange(w.flat.numel(), at::kFloat) * 0.7) * 0.3);
  return w;
}

Batch some_tokens() { return single_document({3, 1, 4, 1, 5, 9, 2, 6, 5, 3}, 0, at::kCPU); }

}  // namespace

TEST(Convert, LightningHeadsReadTheirOwnKvHead) {
  const ModelConfig source = source_config(false, true);
  const ModelConfig hybrid = hybrid_config(source, {0}, SparseConfig{}, false);
  const Weights full = random_mixer(source, Mixer::kFull);
  Weights mixer(mixer_layout(hybrid, 1, Mixer::kLightning), at::kFloat, at::kCPU);
  const at::Tensor rms = at::rand({source.q_size()});
  start_lightning_mixer(hybrid, full, rms, mixer);
  for (const char* name : {"k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias"}) {
    for (int64_t h = 0; h < 6; ++h) {
      EXPECT_TRUE(
          at::equal(mixer[name].narrow(0, h * 32, 32), full[name].narrow(0, h / 3 * 32, 32)))
          << name << " head " << h;
    }
  }
  EXPECT_TRUE(at::equal(mixer["q_proj.weight"], full["q_proj.weight"]));
  EXPECT_TRUE(at::equal(mixer["o_norm.weight"], rms / 0.5));
  EXPECT_EQ(mixer["z_proj.weight"].abs().max().item<float>(), 0);
  EXPECT_EQ(mixer["o_proj.bias"].abs().max().item<float>(), 0);  // the format has one bias flag
  EXPECT_EQ(mixer["q_norm.weight"].min().item<float>(), 1);
}

TEST(Convert, TheGateOfAKeptLayerChangesNothing) {
  for (bool keep_norm : {false, true}) {
    const ModelConfig source = source_config(keep_norm, false);
    const ModelConfig hybrid = hybrid_config(source, {0, 1, 2}, SparseConfig{}, keep_norm);
    const Weights full = random_mixer(source, Mixer::kFull);
    Weights kept(mixer_layout(hybrid, 1, Mixer::kSparse), at::kFloat, at::kCPU);
    start_sparse_mixer(hybrid, full, kept);
    const Batch batch = some_tokens();
    Env env;  // without rotary tables: the source's attention without positions
    env.batch = &batch;
    env.key_docs = batch.docs;
    const at::Tensor x = at::sin(at::arange(10 * 48, at::kFloat)).view({10, 48});
    const at::Tensor expected = mixer_forward(Mixer::kFull, {source, full, env, 1, nullptr}, x);
    const at::Tensor y = mixer_forward(Mixer::kSparse, {hybrid, kept, env, 1, nullptr}, x);
    EXPECT_LE((y - expected).abs().max().item<float>(), 1e-5) << "keep_norm " << keep_norm;
  }
}

TEST(Convert, KeptQkNormIsInTheLayoutAndKeepsTheExportAway) {
  const ModelConfig source = source_config(true, false);
  const ModelConfig keep = hybrid_config(source, {0, 2}, SparseConfig{}, true);
  const ModelConfig drop = hybrid_config(source, {0, 2}, SparseConfig{}, false);
  EXPECT_NE(mixer_layout(keep, 0, Mixer::kSparse).find("model.layers.0.self_attn.q_norm.weight"),
            nullptr);
  EXPECT_EQ(mixer_layout(drop, 0, Mixer::kSparse).find("model.layers.0.self_attn.q_norm.weight"),
            nullptr);
  EXPECT_FALSE(export_verdict(keep).refusals.empty());
  EXPECT_TRUE(export_verdict(drop).refusals.empty());
}

TEST(Convert, PositionsLeaveKeptLayersAndStayInLightningOnesWithoutScaling) {
  ModelConfig source = source_config(false, false);
  source.rope.kind = RopeConfig::Kind::kLinear;
  source.rope.factor = 4;
  const ModelConfig hybrid = hybrid_config(source, {0}, SparseConfig{}, false);
  EXPECT_FALSE(hybrid.sparse_rope);
  EXPECT_TRUE(hybrid.lightning_rope);
  EXPECT_EQ(hybrid.lightning_rope_config.kind, RopeConfig::Kind::kDefault);
  EXPECT_EQ(hybrid.lightning_rope_config.theta, 5000);
}

}  // namespace sala
