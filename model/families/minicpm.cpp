// MiniCPM 1, 2 and 4: Llama's block with muP scalings (arXiv:2404.06395) and, from MiniCPM4 on,
// longrope. MiniCPM4's sparse_config is an inference option of the same weights; as a source it is
// read densely.
#include "model/families/config_reader.h"

namespace sala {

ModelConfig parse_minicpm(const nlohmann::json& config, const std::string& where) {
  const ConfigReader reader(config, where);
  ModelConfig c = parse_common(reader, {.tied_head = true});
  if (reader.integer("num_experts", 0) > 0) {
    reader.fail("num_experts", "mixtures of experts are not supported");
  }
  c.qkv_bias = c.out_bias = reader.flag("attention_bias", false);
  parse_mup(reader, c);
  if (c.rope.kind == RopeConfig::Kind::kLongrope) {
    // MiniCPM's own code derives the scaling from the two context lengths, whatever is stated.
    c.rope.factor = 1;
    c.rope.attention_factor = c.max_position > c.rope.original_max_position ? 0 : 1;
  }
  return c;
}

}  // namespace sala
