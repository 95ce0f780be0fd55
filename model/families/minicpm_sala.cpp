// The hybrid itself (MiniCPM-SALA's release format, arXiv:2602.11761): which layer is sparse, which
// lightning, and the flags of both. Defaults of absent flags are those of the official
// configuration class.
#include "model/families/config_reader.h"

namespace sala {
namespace {

Mixer parse_mixer(const ConfigReader& reader, const std::string& name) {
  if (name == "minicpm4") return Mixer::kSparse;
  if (name == "lightning-attn" || name == "lightning_attn" || name == "lightning") {
    return Mixer::kLightning;
  }
  reader.fail("mixer_types", "unknown mixer \"" + name + "\"; known: minicpm4, lightning-attn");
}

void parse_sparse_config(const ConfigReader& reader, ModelConfig& c) {
  if (!reader.has("sparse_config")) {
    reader.fail("sparse_config",
                "expected an object; for dense attention up to a length, state "
                "that length as dense_len");
  }
  const ConfigReader sparse = reader.object("sparse_config");
  SparseConfig& s = c.sparse;
  s.kernel_size = sparse.integer("kernel_size", s.kernel_size);
  s.kernel_stride = sparse.integer("kernel_stride", s.kernel_stride);
  s.init_blocks = sparse.integer("init_blocks", s.init_blocks);
  s.block_size = sparse.integer("block_size", s.block_size);
  s.window_size = sparse.integer("window_size", s.window_size);
  s.topk = sparse.integer("topk", s.topk);
  s.dense_len = sparse.integer("dense_len", s.dense_len);
  if (c.sparse_rope && sparse.flag("use_nope", false)) {
    sparse.fail("use_nope", "scoring with un-rotated keys beside attn_use_rope is not supported");
  }
}

double parse_lightning_scale(const ConfigReader& reader, int64_t head_size) {
  if (!reader.has("lightning_scale")) return 0;
  if (reader.value("lightning_scale").is_number()) {
    const double scale = reader.number("lightning_scale");
    if (scale == 0) reader.fail("lightning_scale", "expected a number other than 0");
    return scale;
  }
  const std::string scale = reader.text("lightning_scale", "");
  if (scale == "1/sqrt(d)") return 0;  // the default, see ModelConfig
  if (scale == "1/d") return 1.0 / static_cast<double>(head_size);
  reader.fail("lightning_scale",
              "expected \"1/sqrt(d)\", \"1/d\" or a number, got \"" + scale + "\"");
}

void parse_lightning(const ConfigReader& reader, ModelConfig& c) {
  if (reader.integer("lightning_nh", c.num_heads) != c.num_heads) {
    reader.fail("lightning_nh",
                "expected num_attention_heads (" + std::to_string(c.num_heads) + ")");
  }
  if (reader.integer("lightning_head_dim", c.head_size) != c.head_size) {
    reader.fail("lightning_head_dim", "expected head_dim (" + std::to_string(c.head_size) + ")");
  }
  if (reader.flag("lightning_layerwise_decay", false)) {
    reader.fail("lightning_layerwise_decay", "a decay that depends on the layer is not supported");
  }
  c.lightning_kv_heads = reader.integer("lightning_nkv", c.num_kv_heads);
  c.lightning_scale = parse_lightning_scale(reader, c.head_size);
  c.lightning_rope = reader.flag("lightning_use_rope", true);
  c.lightning_qk_norm = reader.flag("qk_norm", true);
  c.lightning_output_norm = reader.flag("use_output_norm", true);
  c.lightning_output_gate = reader.flag("use_output_gate", true);
  c.lightning_rope_config = c.rope;
}

}  // namespace

ModelConfig parse_minicpm_sala(const nlohmann::json& config, const std::string& where) {
  const ConfigReader reader(config, where);
  ModelConfig c = parse_common(reader, {});
  c.qkv_bias = c.out_bias = reader.flag("attention_bias", false);
  parse_mup(reader, c);
  c.sparse_rope = reader.flag("attn_use_rope", false);
  c.sparse_output_gate = reader.flag("attn_use_output_gate", true);
  parse_sparse_config(reader, c);
  parse_lightning(reader, c);
  const auto names = reader.texts("mixer_types");
  if (static_cast<int64_t>(names.size()) != c.num_layers) {
    reader.fail("mixer_types", "expected one entry for each of the " +
                                   std::to_string(c.num_layers) + " layers, got " +
                                   std::to_string(names.size()));
  }
  c.mixers.clear();
  for (const std::string& name : names) c.mixers.push_back(parse_mixer(reader, name));
  return c;
}

}  // namespace sala
