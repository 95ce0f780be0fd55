// Llama 1 to 3 and its relatives (SmolLM2, TinyLlama, Yi): the plain block, no scalings.
#include "model/families/config_reader.h"

namespace sala {

ModelConfig parse_llama(const nlohmann::json& config, const std::string& where) {
  const ConfigReader reader(config, where);
  ModelConfig c = parse_common(reader, {});
  if (reader.flag("mlp_bias", false)) {
    reader.fail("mlp_bias", "biases in the feed-forward layers are not supported");
  }
  c.qkv_bias = c.out_bias = reader.flag("attention_bias", false);
  return c;
}

}  // namespace sala
