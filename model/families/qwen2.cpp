// Qwen2 and Qwen2.5: Llama's block with biases on q, k and v, none on the output.
#include "model/families/config_reader.h"

namespace sala {

ModelConfig parse_qwen2(const nlohmann::json& config, const std::string& where) {
  const ConfigReader reader(config, where);
  ModelConfig c = parse_common(reader, {.kv_heads = 32});
  c.qkv_bias = true;
  c.sliding_window = parse_qwen_window(reader, c.num_layers);
  return c;
}

}  // namespace sala
