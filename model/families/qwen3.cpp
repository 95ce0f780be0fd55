// Qwen3 (dense): a norm per head on q and k before RoPE, head size 128 unless stated.
#include "model/families/config_reader.h"

namespace sala {

ModelConfig parse_qwen3(const nlohmann::json& config, const std::string& where) {
  const ConfigReader reader(config, where);
  ModelConfig c = parse_common(reader, {.kv_heads = 32, .head_dim = 128});
  c.full_qk_norm = true;
  c.qkv_bias = c.out_bias = reader.flag("attention_bias", false);
  c.sliding_window = parse_qwen_window(reader, c.num_layers);
  return c;
}

}  // namespace sala
