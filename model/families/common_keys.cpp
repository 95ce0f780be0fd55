// The parts of a config.json that the source families share.
#include <cmath>

#include "model/families/config_reader.h"

namespace sala {
namespace {

using Kind = RopeConfig::Kind;

Kind parse_rope_kind(const ConfigReader& scaling) {
  const char* key = scaling.has("rope_type") ? "rope_type" : "type";
  const std::string kind = scaling.text(key, "default");
  if (scaling.text("type", kind) != kind) {
    scaling.fail("type", "says \"" + scaling.text("type", "") + "\", rope_type says \"" + kind +
                             "\": releases of transformers differ in which they follow");
  }
  if (!scaling.has(key) && scaling.has("factor")) {
    scaling.fail("rope_type", "expected the kind of scaling that factor belongs to");
  }
  if (kind == "default") return Kind::kDefault;
  if (kind == "linear") return Kind::kLinear;
  if (kind == "llama3") return Kind::kLlama3;
  if (kind == "longrope") return Kind::kLongrope;
  if (kind == "yarn") return Kind::kYarn;
  scaling.fail(
      key, "unknown rope kind \"" + kind + "\"; known: default, linear, llama3, longrope, yarn");
}

// `top`: the config itself, `scaling`: its rope_scaling or rope_parameters.
void parse_rope_scaling(const ConfigReader& top, const ConfigReader& scaling, int64_t max_position,
                        RopeConfig& rope) {
  rope.kind = parse_rope_kind(scaling);
  rope.theta = scaling.number("rope_theta", rope.theta);
  if (rope.kind == Kind::kDefault) return;
  if (scaling.number("partial_rotary_factor", 1.0) != 1.0) {
    scaling.fail("partial_rotary_factor", "only 1 is supported, every dimension rotates");
  }
  const bool scaled = rope.kind != Kind::kLinear;
  if (scaled) {  // transformers lets the top-level key win, and falls back to the context length
    const char* key = "original_max_position_embeddings";
    const int64_t inner = scaling.integer(key, max_position);
    rope.original_max_position = top.integer(key, inner);
    if (scaling.has(key) && rope.original_max_position != inner) {
      scaling.fail(key, "is " + std::to_string(inner) + ", but beside it stands " +
                            std::to_string(rope.original_max_position));
    }
    if (rope.original_max_position <= 1) {
      scaling.fail("original_max_position_embeddings", "expected a length above 1");
    }
  }
  const double ratio =
      scaled ? static_cast<double>(max_position) / static_cast<double>(rope.original_max_position)
             : 1.0;
  const bool may_derive = rope.kind == Kind::kLongrope || rope.kind == Kind::kYarn;
  rope.factor = may_derive ? scaling.number("factor", ratio) : scaling.number("factor");
  if (rope.kind == Kind::kLlama3) {
    rope.low_freq_factor = scaling.number("low_freq_factor");
    rope.high_freq_factor = scaling.number("high_freq_factor");
  }
  if (may_derive) rope.attention_factor = scaling.number("attention_factor", 0.0);
  if (rope.kind == Kind::kLongrope) {
    rope.long_factor = scaling.numbers("long_factor");
    rope.short_factor = scaling.numbers("short_factor");
    // A stated factor of 1 means no attention factor; RopeConfig's own 1 means "not stated".
    if (rope.factor <= 1 && rope.attention_factor == 0) rope.attention_factor = 1;
  }
  if (rope.kind == Kind::kYarn) {
    rope.beta_fast = scaling.number("beta_fast", 32.0);
    rope.beta_slow = scaling.number("beta_slow", 1.0);
    rope.mscale = scaling.number("mscale", 0.0);
    rope.mscale_all_dim = scaling.number("mscale_all_dim", 0.0);
    rope.truncate = scaling.flag("truncate", true);
  }
}

// One of the two objects, alone.
RopeConfig parse_rope_object(const ConfigReader& reader, const char* key, double theta,
                             int64_t max_position) {
  RopeConfig rope;
  rope.theta = theta;
  const ConfigReader scaling = reader.object(key);
  if (scaling.has("full_attention") || scaling.has("sliding_attention")) {
    reader.fail(key, "different rotary embeddings by layer type are not supported");
  }
  parse_rope_scaling(reader, scaling, max_position, rope);
  if (reader.has("rope_theta") && rope.theta != theta) {
    reader.fail("rope_theta", "stands beside " + std::string(key) +
                                  ".rope_theta and is another number; releases of transformers "
                                  "differ in which they follow: keep one");
  }
  return rope;
}

}  // namespace

// transformers 5 lets rope_scaling replace the whole of rope_parameters, its theta included;
// transformers 4 takes rope_scaling with the top-level theta. Nobody who states a thing twice and
// differently can mean both.
RopeConfig parse_rope(const ConfigReader& reader, int64_t max_position) {
  if (reader.number("partial_rotary_factor", 1.0) != 1.0) {
    reader.fail("partial_rotary_factor", "only 1 is supported, every dimension rotates");
  }
  const auto stated = [&](const char* key) {
    return reader.has(key) && !reader.value(key).empty();
  };
  const double theta = reader.number("rope_theta", 10000.0);
  RopeConfig rope;
  rope.theta = theta;
  if (stated("rope_scaling")) {
    rope = parse_rope_object(reader, "rope_scaling", theta, max_position);
  }
  if (!stated("rope_parameters")) return rope;
  const RopeConfig newer = parse_rope_object(reader, "rope_parameters", theta, max_position);
  if (stated("rope_scaling") && !(newer == rope)) {
    reader.fail("rope_scaling",
                "stands beside rope_parameters and says something else; releases of transformers "
                "differ in which they follow: keep one, with kind, factor and rope_theta in it");
  }
  return newer;
}

namespace {

// What an absent key means differs between the families, what null means does not.
int64_t parse_kv_heads(const ConfigReader& reader, int64_t num_heads, int64_t family_default) {
  const char* key = "num_key_value_heads";
  if (reader.has(key)) return reader.integer(key);
  if (reader.is_null(key) || family_default == 0) return num_heads;
  if (num_heads % family_default != 0) {
    reader.fail(key, "is not stated, and the family's default, " + std::to_string(family_default) +
                         ", does not divide num_attention_heads (" + std::to_string(num_heads) +
                         ")");
  }
  return family_default;
}

}  // namespace

ModelConfig parse_common(const ConfigReader& reader, const FamilyDefaults& defaults) {
  ModelConfig c;
  for (const char* key :
       {"rope_theta", "rms_norm_eps", "tie_word_embeddings", "hidden_act", "attention_bias"}) {
    if (reader.is_null(key)) reader.fail(key, "expected a value or no such key, got null");
  }
  c.num_layers = reader.integer("num_hidden_layers");
  c.width = reader.integer("hidden_size");
  c.ffn_width = reader.integer("intermediate_size");
  c.vocab_size = reader.integer("vocab_size");
  c.num_heads = reader.integer("num_attention_heads");
  c.max_position = reader.integer("max_position_embeddings");
  if (c.num_layers < 1 || c.num_layers > ModelConfig::kMostLayers) {  // a list of them is made here
    reader.fail("num_hidden_layers", "expected 1 to " + std::to_string(ModelConfig::kMostLayers) +
                                         ", got " + std::to_string(c.num_layers));
  }
  if (c.num_heads <= 0) reader.fail("num_attention_heads", "expected a positive number");
  c.num_kv_heads = parse_kv_heads(reader, c.num_heads, defaults.kv_heads);
  c.lightning_kv_heads = c.num_heads;
  if (!reader.has("head_dim") && defaults.head_dim == 0 && c.width % c.num_heads != 0) {
    reader.fail("hidden_size",
                "expected a multiple of num_attention_heads (" + std::to_string(c.num_heads) +
                    ") where head_dim is not stated, got " + std::to_string(c.width));
  }
  const int64_t head_dim = defaults.head_dim > 0 ? defaults.head_dim : c.width / c.num_heads;
  c.head_size = reader.integer("head_dim", head_dim);
  c.rms_eps = reader.number("rms_norm_eps", 1e-6);
  c.tied_head = reader.flag("tie_word_embeddings", defaults.tied_head);
  c.initializer_range = reader.number("initializer_range", 0.02);
  c.bos_ids = reader.token_ids("bos_token_id");
  c.eos_ids = reader.token_ids("eos_token_id");
  c.pad_id = reader.integer("pad_token_id", -1);
  const std::string activation = reader.text("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") {
    reader.fail("hidden_act", "expected \"silu\", got \"" + activation + "\"");
  }
  if (reader.has("quantization_config")) {
    reader.fail("quantization_config", "quantized weights are not supported, use the bf16 model");
  }
  c.rope = parse_rope(reader, c.max_position);
  c.lightning_rope_config.theta = c.rope.theta;
  c.mixers.assign(static_cast<size_t>(c.num_layers), Mixer::kFull);
  return c;
}

void parse_mup(const ConfigReader& reader, ModelConfig& config) {
  config.embedding_scale = reader.number("scale_emb", 1.0);
  // The neutral values where a key is absent are those of MiniCPM's configuration class.
  config.scale_depth = reader.number("scale_depth", 1.0);
  config.dim_model_base = reader.integer("dim_model_base", 1);
  const double depth = std::sqrt(static_cast<double>(config.num_layers));
  config.residual_scale = config.scale_depth / depth;
  config.logit_scale =
      static_cast<double>(config.dim_model_base) / static_cast<double>(config.width);
}

int64_t parse_window(const ConfigReader& reader) {
  return reader.is_null("sliding_window") ? 0 : reader.integer("sliding_window", 4096);
}

int64_t parse_qwen_window(const ConfigReader& reader, int64_t num_layers) {
  if (!reader.flag("use_sliding_window", false)) return 0;
  const int64_t window = parse_window(reader);
  if (!reader.has("layer_types")) {
    return reader.integer("max_window_layers", 28) < num_layers ? window : 0;
  }
  for (const std::string& kind : reader.texts("layer_types")) {
    if (kind == "sliding_attention") return window;
  }
  return 0;
}

}  // namespace sala
