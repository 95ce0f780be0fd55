// Every family's config.json: what is read, which defaults hold where a key is absent, and one
// clear line for what cannot be represented; the hybrid's config.json and what stops an export.
#include "model/families/families.h"

#include <gtest/gtest.h>

#include <cmath>

namespace sala {
namespace {

using nlohmann::json;
using Kind = RopeConfig::Kind;

json base(const char* model_type) {
  return {{"model_type", model_type}, {"hidden_size", 64},
          {"intermediate_size", 96},  {"num_hidden_layers", 3},
          {"num_attention_heads", 4}, {"num_key_value_heads", 2},
          {"vocab_size", 100},        {"max_position_embeddings", 512}};
}

json with(json config, const json& changes) {
  for (const auto& [key, value] : changes.items()) config[key] = value;
  return config;
}

ModelConfig parse(const json& config) { return parse_model_config(config, "dir/config.json"); }

std::string error_of(const json& config) {
  try {
    parse(config);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "no error";
}

json hybrid() {
  json config = base("minicpm_sala");
  return with(config, {{"head_dim", 16},
                       {"mixer_types", {"minicpm4", "lightning-attn", "lightning_attn"}},
                       {"lightning_nh", 4},
                       {"lightning_nkv", 4},
                       {"lightning_head_dim", 16},
                       {"scale_emb", 12},
                       {"scale_depth", 1.4},
                       {"dim_model_base", 16},
                       {"sparse_config",
                        {{"block_size", 16},
                         {"kernel_size", 8},
                         {"kernel_stride", 4},
                         {"window_size", 32},
                         {"topk", 4},
                         {"dense_len", 64},
                         {"init_blocks", 1},
                         {"use_nope", false}}}});
}

TEST(Families, LlamaDefaults) {
  const ModelConfig c = parse(base("llama"));
  EXPECT_EQ(c.family, "llama");
  EXPECT_EQ(c.head_size, 16);
  EXPECT_EQ(c.rope.theta, 10000);
  EXPECT_EQ(c.rope.kind, Kind::kDefault);
  EXPECT_EQ(c.rms_eps, 1e-6);
  EXPECT_FALSE(c.tied_head || c.qkv_bias || c.out_bias || c.full_qk_norm || c.is_hybrid());
  EXPECT_EQ(c.mixers, std::vector<Mixer>(3, Mixer::kFull));
  EXPECT_EQ(c.residual_scale, 1);
  EXPECT_EQ(c.pad_id, -1);
  EXPECT_TRUE(c.bos_ids.empty() && c.eos_ids.empty());
}

TEST(Families, NullCountsAsAbsent) {
  const ModelConfig c = parse(with(base("llama"), {{"head_dim", nullptr},
                                                   {"num_key_value_heads", nullptr},
                                                   {"rope_scaling", nullptr},
                                                   {"pad_token_id", nullptr},
                                                   {"eos_token_id", nullptr}}));
  EXPECT_EQ(c.head_size, 16);
  EXPECT_EQ(c.num_kv_heads, 4);
}

TEST(Families, TokenIdsAreANumberOrAList) {
  const ModelConfig c = parse(with(base("llama"), {{"bos_token_id", 1}, {"eos_token_id", {2, 7}}}));
  EXPECT_EQ(c.bos_ids, std::vector<int64_t>{1});
  EXPECT_EQ(c.eos_ids, (std::vector<int64_t>{2, 7}));
}

TEST(Families, LlamaBiasesAreOnAllFourProjections) {
  const ModelConfig c = parse(with(base("llama"), {{"attention_bias", true}}));
  EXPECT_TRUE(c.qkv_bias && c.out_bias);
}

TEST(Families, BothFormsOfRopeAreTheSame) {
  const json scaling = {{"factor", 8.0},
                        {"low_freq_factor", 1.0},
                        {"high_freq_factor", 4.0},
                        {"original_max_position_embeddings", 128}};
  const json hub = with(
      base("llama"), {{"rope_theta", 5e5}, {"rope_scaling", with(scaling, {{"type", "llama3"}})}});
  const json newer =
      with(base("llama"),
           {{"rope_parameters", with(scaling, {{"rope_type", "llama3"}, {"rope_theta", 5e5}})}});
  for (const json& config : {hub, newer}) {
    const ModelConfig c = parse(config);
    EXPECT_EQ(c.rope.kind, Kind::kLlama3);
    EXPECT_EQ(c.rope.theta, 5e5);
    EXPECT_EQ(c.rope.factor, 8);
    EXPECT_EQ(c.rope.original_max_position, 128);
    EXPECT_EQ(c.lightning_rope_config.kind, Kind::kDefault);  // the theta without the scaling
    EXPECT_EQ(c.lightning_rope_config.theta, 5e5);
  }
}

// transformers 5 takes rope_scaling and forgets the theta of rope_parameters, transformers 4 takes
// rope_scaling with the theta at top level: whoever states both and differently is asked.
TEST(Families, RopeStatedTwiceMustAgree) {
  const json yarn = {
      {"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 128}};
  const json plain = {{"rope_type", "default"}, {"rope_theta", 1e6}};
  const auto both = [](const json& scaling, const json& parameters) {
    return with(base("llama"), {{"rope_scaling", scaling}, {"rope_parameters", parameters}});
  };
  const json theta = {{"rope_theta", 1e6}};
  for (const json& bad :
       {both(yarn, plain), both(yarn, with(yarn, theta)), both(with(yarn, {{"factor", 2.0}}), yarn),
        with(both(yarn, plain), theta), both({{"type", "linear"}, {"factor", 2.0}}, yarn)}) {
    EXPECT_NE(error_of(bad).find("rope_scaling: stands beside rope_parameters"), std::string::npos)
        << error_of(bad);
  }
  for (const json& good :
       {both(yarn, yarn), both(with(yarn, theta), with(yarn, theta)),
        with(both(yarn, with(yarn, theta)), theta), both(nullptr, with(yarn, theta)),
        both(json::object(), with(yarn, theta)), with(both(yarn, nullptr), theta)}) {
    EXPECT_EQ(parse(good).rope.kind, Kind::kYarn);
  }
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    EXPECT_NE(error_of(with(base("llama"), {{"rope_theta", 3e5}, {key, with(yarn, theta)}}))
                  .find("rope_theta: stands beside " + std::string(key)),
              std::string::npos);
  }
  EXPECT_NE(error_of(with(base("llama"), {{"rope_scaling", with(yarn, {{"type", "linear"}})}}))
                .find("rope_scaling.type: says \"linear\""),
            std::string::npos);
  EXPECT_NE(error_of(with(base("llama"), {{"rope_scaling", {{"factor", 4.0}}}}))
                .find("rope_scaling.rope_type: expected"),
            std::string::npos);
}

TEST(Families, NullIsNotTheFamilysDefault) {
  const auto heads = [](const char* family, const json& value) {
    return parse(with(base(family), {{"num_key_value_heads", value}, {"head_dim", 16}}));
  };
  for (const char* family : {"llama", "qwen2", "qwen3", "mistral", "minicpm"}) {
    EXPECT_EQ(heads(family, nullptr).num_kv_heads, 4) << family;
  }
  json absent = base("mistral");
  absent.erase("num_key_value_heads");
  EXPECT_NE(error_of(absent).find("is not stated, and the family's default, 8"), std::string::npos);
  EXPECT_EQ(parse(with(base("qwen2"), {{"use_sliding_window", true},
                                       {"max_window_layers", 1},
                                       {"sliding_window", nullptr}}))
                .sliding_window,
            0);
  for (const char* key : {"rope_theta", "rms_norm_eps", "tie_word_embeddings"}) {
    const std::string error = error_of(with(base("llama"), {{key, nullptr}}));
    EXPECT_NE(error.find(std::string(key) + ": expected a value"), error.npos) << error;
  }
}

TEST(Families, SizesThatNoModelHasAreRefusedBeforeTheyTakeMemory) {
  for (const char* key : {"num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size",
                          "num_attention_heads", "max_position_embeddings", "head_dim"}) {
    for (const json& size : {json(-1), json(INT64_MAX - 1), json(INT64_MIN), json(UINT64_MAX)}) {
      const std::string error = error_of(with(base("llama"), {{key, size}}));
      EXPECT_NE(error.find(key), error.npos) << error;
    }
  }
  EXPECT_NE(error_of(with(base("llama"), {{"num_hidden_layers", 10'000'000}})).find("1 to 10000"),
            std::string::npos);
  EXPECT_NE(error_of(with(hybrid(), {{"sparse_config", {{"topk", INT64_MAX}}}})).find("from 0 to"),
            std::string::npos);
}

TEST(Families, YarnTakesTheContextWhereNoOriginalIsStated) {
  const json scaling = {{"type", "yarn"}, {"factor", 2.0}};
  const ModelConfig c = parse(with(base("qwen2"), {{"rope_scaling", scaling}}));
  EXPECT_EQ(c.rope.original_max_position, 512);
  EXPECT_EQ(c.rope.beta_fast, 32);
  EXPECT_TRUE(c.rope.truncate);
}

TEST(Families, Qwen2HasBiasesOnQkvOnlyAndAWindowWhenSwitchedOn) {
  const json window = {{"sliding_window", 128}, {"max_window_layers", 2}};
  const ModelConfig off = parse(with(base("qwen2"), window));
  EXPECT_TRUE(off.qkv_bias);
  EXPECT_FALSE(off.out_bias);
  EXPECT_EQ(off.sliding_window, 0);
  const json on = with(with(base("qwen2"), window), {{"use_sliding_window", true}});
  EXPECT_EQ(parse(on).sliding_window, 128);
  EXPECT_EQ(parse(with(on, {{"max_window_layers", 3}})).sliding_window, 0);  // no layer has it
  const json full = {"full_attention", "full_attention", "full_attention"};
  EXPECT_EQ(parse(with(on, {{"layer_types", full}})).sliding_window, 0);
}

TEST(Families, Qwen3HasHeadNormsAndHeadSize128ByDefault) {
  const ModelConfig c = parse(base("qwen3"));
  EXPECT_TRUE(c.full_qk_norm);
  EXPECT_EQ(c.head_size, 128);
  EXPECT_EQ(parse(with(base("qwen3"), {{"head_dim", 32}})).head_size, 32);
}

TEST(Families, MistralWindowIsOnUnlessNull) {
  EXPECT_EQ(parse(base("mistral")).sliding_window, 4096);
  EXPECT_EQ(parse(with(base("mistral"), {{"sliding_window", nullptr}})).sliding_window, 0);
  EXPECT_EQ(parse(with(base("mistral"), {{"sliding_window", 64}})).sliding_window, 64);
}

TEST(Families, MiniCpmScalings) {
  const ModelConfig c = parse(
      with(base("minicpm"), {{"scale_emb", 12}, {"scale_depth", 1.4}, {"dim_model_base", 16}}));
  EXPECT_EQ(c.embedding_scale, 12);
  EXPECT_EQ(c.residual_scale, 1.4 / std::sqrt(3.0));
  EXPECT_EQ(c.logit_scale, 0.25);
  EXPECT_TRUE(c.tied_head);  // the default of its configuration class
}

TEST(Families, MiniCpmDerivesItsLongropeAmplitude) {
  std::vector<double> factors(8, 1.5);
  const json scaling = {{"rope_type", "longrope"},
                        {"long_factor", factors},
                        {"short_factor", factors},
                        {"factor", 7.0},
                        {"original_max_position_embeddings", 512}};
  const ModelConfig c = parse(with(base("minicpm"), {{"rope_scaling", scaling}}));
  EXPECT_EQ(c.rope.kind, Kind::kLongrope);
  EXPECT_EQ(c.rope.factor, 1);
  EXPECT_EQ(c.rope.attention_factor, 1);
}

TEST(Families, HybridIsReadInFull) {
  const ModelConfig c =
      parse(with(hybrid(), {{"lightning_scale", "1/d"}, {"attn_use_rope", true}}));
  EXPECT_TRUE(c.is_hybrid());
  EXPECT_EQ(c.mixers, (std::vector<Mixer>{Mixer::kSparse, Mixer::kLightning, Mixer::kLightning}));
  EXPECT_EQ(c.lightning_scale, 1.0 / 16);
  EXPECT_TRUE(c.sparse_rope && c.lightning_rope && c.lightning_qk_norm);
  EXPECT_TRUE(c.lightning_output_norm && c.lightning_output_gate && c.sparse_output_gate);
  EXPECT_EQ(c.lightning_kv_heads, 4);
  EXPECT_EQ(c.sparse.blocks_per_token(), 6);
  EXPECT_EQ(c.sparse.dense_len, 64);
}

struct BadConfig {
  const char* what;
  json config;
  const char* expected;  // part of the message
};

TEST(Families, WhatCannotBeRepresentedIsOneLineThatNamesTheKey) {
  const json nested = {{"full_attention", {{"rope_type", "default"}}}};
  const auto rope = [](const json& scaling) { return json{{"rope_scaling", scaling}}; };
  json no_width = base("llama");
  no_width.erase("hidden_size");
  const BadConfig cases[] = {
      {"no object", json::array(), "expected a JSON object"},
      {"no type", json::object(), "model_type"},
      {"unknown family", base("gpt2"),
       "known: llama, minicpm, minicpm_sala, mistral, qwen2, qwen3"},
      {"missing key", no_width, "hidden_size: expected this key"},
      {"text for number", with(base("llama"), {{"vocab_size", "many"}}),
       "vocab_size: expected an integer"},
      {"fraction", with(base("llama"), {{"vocab_size", 1.5}}), "expected an integer, got 1.5"},
      {"heads", with(base("llama"), {{"num_key_value_heads", 3}}),
       "multiple of num_key_value_heads (3)"},
      {"no heads", with(base("llama"), {{"num_attention_heads", 0}}), "num_attention_heads"},
      {"odd head", with(base("llama"), {{"head_dim", 15}}), "head_dim must be positive and even"},
      {"width", with(base("llama"), {{"hidden_size", 66}}), "multiple of num_attention_heads (4)"},
      {"mlp bias", with(base("llama"), {{"mlp_bias", true}}), "mlp_bias"},
      {"activation", with(base("llama"), {{"hidden_act", "gelu"}}), "expected \"silu\""},
      {"quantized", with(base("llama"), {{"quantization_config", {{"bits", 4}}}}),
       "quantization_config"},
      {"rope kind", with(base("llama"), rope({{"type", "dynamic"}})),
       "unknown rope kind \"dynamic\"; known: default, linear, llama3, longrope, yarn"},
      {"rope factor", with(base("llama"), rope({{"rope_type", "linear"}})), "rope_scaling.factor"},
      {"rope text", with(base("llama"), rope("yarn")), "rope_scaling: expected a JSON object"},
      {"partial", with(base("llama"), {{"partial_rotary_factor", 0.5}}), "partial_rotary_factor"},
      {"by layer", with(base("qwen3"), {{"rope_parameters", nested}}), "by layer type"},
      {"factors",
       with(base("minicpm"),
            rope({{"rope_type", "longrope"}, {"long_factor", {1}}, {"short_factor", {1}}})),
       "needs 8 positive numbers"},
      {"experts", with(base("minicpm"), {{"num_experts", 8}}), "num_experts"},
      {"eos", with(base("llama"), {{"eos_token_id", "</s>"}}), "eos_token_id"},
      {"mixers", with(hybrid(), {{"mixer_types", {"minicpm4"}}}),
       "one entry for each of the 3 layers"},
      {"mixer", with(hybrid(), {{"mixer_types", {"minicpm4", "mamba", "mamba"}}}),
       "unknown mixer \"mamba\""},
      {"nh", with(hybrid(), {{"lightning_nh", 8}}), "lightning_nh"},
      {"scale", with(hybrid(), {{"lightning_scale", "1/log(d)"}}), "lightning_scale"},
      {"scale no float holds", with(hybrid(), {{"lightning_scale", 1e308}}), "lightning_scale"},
      {"no scale", with(hybrid(), {{"lightning_scale", 0}}), "lightning_scale"},
      {"rope parameter",
       with(base("qwen2"),
            rope({{"rope_type", "yarn"}, {"factor", 2.0}, {"attention_factor", 1e308}})),
       "its parameters must be positive"},
      {"decay", with(hybrid(), {{"lightning_layerwise_decay", true}}), "lightning_layerwise_decay"},
      {"no sparse", with(hybrid(), {{"sparse_config", nullptr}}),
       "sparse_config: expected an object"},
      {"block", with(hybrid(), {{"sparse_config", {{"block_size", 32}}}}), "block_size (32)"},
  };
  for (const BadConfig& bad : cases) {
    const std::string error = error_of(bad.config);
    EXPECT_NE(error.find("dir/config.json: "), error.npos) << bad.what << ": " << error;
    EXPECT_NE(error.find(bad.expected), error.npos) << bad.what << ": " << error;
    EXPECT_EQ(error.find('\n'), error.npos) << bad.what << ": " << error;
  }
}

TEST(Families, EveryContradictionIsInOneMessage) {
  const std::string error = error_of(
      with(base("llama"), {{"num_key_value_heads", 3}, {"vocab_size", 0}, {"rope_theta", -1}}));
  EXPECT_NE(error.find("num_key_value_heads"), error.npos) << error;
  EXPECT_NE(error.find("vocab_size"), error.npos) << error;
  EXPECT_NE(error.find("rope_theta"), error.npos) << error;
}

// The fields that shape the numbers, and the text that comes out again.
void expect_round_trip(const ModelConfig& before) {
  const json written = hybrid_config_json(before);
  const ModelConfig after = parse(json::parse(written.dump(2)));
  EXPECT_EQ(after.residual_scale, before.residual_scale);
  EXPECT_EQ(after.logit_scale, before.logit_scale);
  EXPECT_EQ(after.embedding_scale, before.embedding_scale);
  EXPECT_EQ(after.mixers, before.mixers);
  EXPECT_EQ(after.rms_eps, before.rms_eps);
  EXPECT_EQ(hybrid_config_json(after).dump(2), written.dump(2));
}

TEST(HybridConfig, RoundTripsExactly) {
  expect_round_trip(parse(hybrid()));
  expect_round_trip(parse(with(hybrid(), {{"rms_norm_eps", 1e-5},
                                          {"eos_token_id", {2, 9}},
                                          {"bos_token_id", 1},
                                          {"pad_token_id", 2},
                                          {"lightning_scale", "1/d"},
                                          {"rope_theta", 5e5}})));
}

TEST(HybridConfig, NeutralSourcesHaveAResidualScaleOfExactlyOne) {
  for (int64_t layers = 1; layers <= 64; ++layers) {
    ModelConfig c = parse(hybrid());
    c.num_layers = layers;
    c.mixers.assign(static_cast<size_t>(layers), Mixer::kSparse);
    c.residual_scale = c.logit_scale = c.embedding_scale = 1;
    c.scale_depth = 0;
    c.dim_model_base = 0;
    const json written = json::parse(hybrid_config_json(c).dump());
    const double depth = written["scale_depth"].get<double>();
    EXPECT_EQ(depth / std::sqrt(static_cast<double>(layers)), 1.0) << layers;
    EXPECT_EQ(written["dim_model_base"], 64);
    expect_round_trip(c);
  }
}

TEST(HybridConfig, StatesEveryFlagOfTheRelease) {
  const json written = hybrid_config_json(parse(hybrid()));
  for (const char* key : {"architectures",
                          "attention_bias",
                          "attention_dropout",
                          "attn_use_output_gate",
                          "attn_use_rope",
                          "auto_map",
                          "bos_token_id",
                          "dim_model_base",
                          "dtype",
                          "eos_token_id",
                          "head_dim",
                          "hidden_act",
                          "hidden_size",
                          "initializer_range",
                          "intermediate_size",
                          "lightning_head_dim",
                          "lightning_nh",
                          "lightning_nkv",
                          "lightning_scale",
                          "lightning_use_rope",
                          "max_position_embeddings",
                          "mixer_types",
                          "model_type",
                          "mup_denominator",
                          "num_attention_heads",
                          "num_hidden_layers",
                          "num_key_value_heads",
                          "pad_token_id",
                          "pretraining_tp",
                          "qk_norm",
                          "rms_norm_eps",
                          "rope_scaling",
                          "rope_theta",
                          "scale_depth",
                          "scale_emb",
                          "shift_labels",
                          "sparse_config",
                          "tie_word_embeddings",
                          "transformers_version",
                          "use_cache",
                          "use_output_gate",
                          "use_output_norm",
                          "vocab_size"}) {
    EXPECT_TRUE(written.contains(key)) << key;
  }
  EXPECT_EQ(written["sparse_config"].size(), 8u);
  EXPECT_EQ(written["auto_map"]["AutoModelForCausalLM"],
            "modeling_minicpm_sala.MiniCPMSALAForCausalLM");
  EXPECT_EQ(written["mixer_types"], (json{"minicpm4", "lightning-attn", "lightning-attn"}));
}

bool mentions(const std::vector<std::string>& lines, const char* word) {
  for (const std::string& line : lines) {
    if (line.find(word) != line.npos) return true;
  }
  return false;
}

TEST(ExportVerdict, AModelLikeTheReleaseLoadsEverywhere) {
  ModelConfig c = parse(hybrid());
  c.head_size = 128;
  c.num_heads = c.lightning_kv_heads = 32;
  c.num_kv_heads = 2;
  c.width = 4096;
  c.logit_scale = 256.0 / 4096;
  c.sparse = SparseConfig{};
  c.max_position = 32768;
  const ExportVerdict verdict = export_verdict(c);
  EXPECT_TRUE(verdict.refusals.empty() && verdict.sglang_blockers.empty());
  EXPECT_TRUE(verdict.notes.empty());
}

TEST(ExportVerdict, RefusesWhatTheFormatCannotSay) {
  const ModelConfig good = parse(hybrid());
  EXPECT_TRUE(export_verdict(good).refusals.empty());
  ModelConfig c = good;
  c.sparse_qk_norm = true;
  EXPECT_TRUE(mentions(export_verdict(c).refusals, "norm on q and k"));
  c = good;
  c.mixers[0] = Mixer::kLightning;
  EXPECT_TRUE(mentions(export_verdict(c).refusals, "layer 0 is not sparse"));
  c = good;
  c.mixers[2] = Mixer::kFull;
  EXPECT_TRUE(mentions(export_verdict(c).refusals, "layer 2 is full attention"));
  c = good;
  c.qkv_bias = true;
  EXPECT_TRUE(mentions(export_verdict(c).refusals, "biases"));
  c = good;
  c.logit_scale = 0.3;
  EXPECT_TRUE(mentions(export_verdict(c).refusals, "logit scale"));
}

TEST(ExportVerdict, SaysWhichLoaderRefuses) {
  ModelConfig c = parse(hybrid());  // head size 16, group 2, context 512
  const ExportVerdict verdict = export_verdict(c);
  EXPECT_TRUE(
      mentions(loader_lines(verdict), "transformers loads it: version 4.56 or later, or 5"));
  EXPECT_TRUE(mentions(verdict.sglang_blockers, "multiple of 128"));
  EXPECT_TRUE(mentions(verdict.notes, "16 query heads"));
  c.max_position = 63;
  EXPECT_TRUE(mentions(export_verdict(c).sglang_blockers, "shorter than 96"));
  c.qkv_bias = c.out_bias = true;
  EXPECT_TRUE(mentions(export_verdict(c).sglang_blockers, "biases"));
}

}  // namespace
}  // namespace sala
