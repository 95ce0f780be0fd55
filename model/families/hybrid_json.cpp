// config.json of the hybrid, in the release format of MiniCPM-SALA. Loaders differ in their
// defaults, so every flag is stated.
#include <cmath>
#include <limits>

#include "model/families/families.h"

namespace sala {
namespace {

using nlohmann::json;

json token_ids(const std::vector<int64_t>& ids) {
  if (ids.empty()) return nullptr;
  if (ids.size() == 1) return ids[0];
  return ids;
}

json lightning_scale(const ModelConfig& c) {
  const auto size = static_cast<double>(c.head_size);
  if (c.lightning_scale == 0 || c.lightning_scale == 1 / std::sqrt(size)) return "1/sqrt(d)";
  if (c.lightning_scale == 1 / size) return "1/d";
  return c.lightning_scale;
}

json rope_scaling(const RopeConfig& rope) {
  using Kind = RopeConfig::Kind;
  const int64_t original = rope.original_max_position;
  json out;
  switch (rope.kind) {
    case Kind::kDefault:
      return nullptr;
    case Kind::kLinear:
      return {{"rope_type", "linear"}, {"factor", rope.factor}};
    case Kind::kLlama3:
      return {{"rope_type", "llama3"},
              {"factor", rope.factor},
              {"low_freq_factor", rope.low_freq_factor},
              {"high_freq_factor", rope.high_freq_factor},
              {"original_max_position_embeddings", original}};
    case Kind::kLongrope:
      out = {{"rope_type", "longrope"},
             {"factor", rope.factor},
             {"long_factor", rope.long_factor},
             {"short_factor", rope.short_factor},
             {"original_max_position_embeddings", original}};
      break;
    case Kind::kYarn:
      out = {{"rope_type", "yarn"},         {"factor", rope.factor},
             {"beta_fast", rope.beta_fast}, {"beta_slow", rope.beta_slow},
             {"truncate", rope.truncate},   {"original_max_position_embeddings", original}};
      if (rope.mscale != 0) out["mscale"] = rope.mscale;
      if (rope.mscale_all_dim != 0) out["mscale_all_dim"] = rope.mscale_all_dim;
      break;
  }
  if (rope.attention_factor > 0) out["attention_factor"] = rope.attention_factor;
  return out;
}

json sparse_config(const SparseConfig& s) {
  return {{"block_size", s.block_size},
          {"dense_len", s.dense_len},
          {"init_blocks", s.init_blocks},
          {"kernel_size", s.kernel_size},
          {"kernel_stride", s.kernel_stride},
          {"topk", s.topk},
          {"use_nope", false},
          {"window_size", s.window_size}};
}

// The loaders compute scale_depth / sqrt(L): finds a scale_depth whose quotient is exactly ours,
// the stated one if there is one. JSON keeps all 17 digits of it.
double scale_depth(const ModelConfig& c) {
  const double root = std::sqrt(static_cast<double>(c.num_layers));
  if (c.scale_depth > 0 && c.scale_depth / root == c.residual_scale) return c.scale_depth;
  double candidate = c.residual_scale * root;
  for (int step = 0; step < 2 && candidate / root < c.residual_scale; ++step) {
    candidate = std::nextafter(candidate, std::numeric_limits<double>::infinity());
  }
  for (int step = 0; step < 2 && candidate / root > c.residual_scale; ++step) {
    candidate = std::nextafter(candidate, 0.0);
  }
  return candidate;
}

int64_t dim_model_base(const ModelConfig& c) {
  return std::llround(c.logit_scale * static_cast<double>(c.width));
}

// Classes in the Python files that export writes beside config.json.
json auto_map() {
  const std::string model = "modeling_minicpm_sala.MiniCPMSALA";
  return {{"AutoConfig", "configuration_minicpm_sala.MiniCPMSALAConfig"},
          {"AutoModel", model + "Model"},
          {"AutoModelForCausalLM", model + "ForCausalLM"}};
}

void add_constants(json& out) {
  out["architectures"] = {"MiniCPMSALAForCausalLM"};
  out["model_type"] = "minicpm_sala";
  out["auto_map"] = auto_map();
  out["attention_dropout"] = 0.0;
  out["dtype"] = "bfloat16";
  out["hidden_act"] = "silu";
  out["pretraining_tp"] = 1;
  out["shift_labels"] = true;
  out["use_cache"] = true;
  out["transformers_version"] = "4.56.1";  // the oldest that loads it
}

void add_mixers(const ModelConfig& c, json& out) {
  out["mixer_types"] = json::array();
  for (Mixer mixer : c.mixers) {
    out["mixer_types"].push_back(mixer == Mixer::kLightning ? "lightning-attn" : "minicpm4");
  }
  out["attention_bias"] = c.qkv_bias;
  out["attn_use_output_gate"] = c.sparse_output_gate;
  out["attn_use_rope"] = c.sparse_rope;
  out["lightning_head_dim"] = c.head_size;
  out["lightning_nh"] = c.num_heads;
  out["lightning_nkv"] = c.lightning_kv_heads;
  out["lightning_scale"] = lightning_scale(c);
  out["lightning_use_rope"] = c.lightning_rope;
  out["qk_norm"] = c.lightning_qk_norm;
  out["use_output_gate"] = c.lightning_output_gate;
  out["use_output_norm"] = c.lightning_output_norm;
  out["rope_theta"] = c.lightning_rope_config.theta;
  out["rope_scaling"] = rope_scaling(c.lightning_rope_config);
  out["sparse_config"] = sparse_config(c.sparse);
}

}  // namespace

json hybrid_config_json(const ModelConfig& c) {
  json out;
  add_constants(out);
  add_mixers(c, out);
  out["bos_token_id"] = token_ids(c.bos_ids);
  out["eos_token_id"] = token_ids(c.eos_ids);
  out["pad_token_id"] = c.pad_id >= 0 ? json(c.pad_id) : json(nullptr);
  out["head_dim"] = c.head_size;
  out["hidden_size"] = c.width;
  out["initializer_range"] = c.initializer_range;
  out["intermediate_size"] = c.ffn_width;
  out["max_position_embeddings"] = c.max_position;
  out["num_attention_heads"] = c.num_heads;
  out["num_hidden_layers"] = c.num_layers;
  out["num_key_value_heads"] = c.num_kv_heads;
  out["rms_norm_eps"] = c.rms_eps;
  out["tie_word_embeddings"] = c.tied_head;
  out["vocab_size"] = c.vocab_size;
  out["scale_emb"] = c.embedding_scale;
  out["scale_depth"] = scale_depth(c);
  out["dim_model_base"] = dim_model_base(c);
  out["mup_denominator"] =
      c.num_layers;  // written for completeness: the loaders use the layer count
  return out;
}

}  // namespace sala
