// Mistral 7B and its relatives: Llama's block; the first release has a sliding window.
#include "model/families/config_reader.h"

namespace sala {

ModelConfig parse_mistral(const nlohmann::json& config, const std::string& where) {
  const ConfigReader reader(config, where);
  ModelConfig c = parse_common(reader, {.kv_heads = 8});
  c.sliding_window = parse_window(reader);
  return c;
}

}  // namespace sala
