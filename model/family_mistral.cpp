// Mistral 7B and its relatives: Llama's block; the first release has a sliding window.
#include "model/config_reader.h"

namespace sala {

ModelConfig parse_mistral(const nlohmann::json& config, const std::string& where) {
  const ConfigReader reader(config, where);
  ModelConfig c = parse_common(reader, {.kv_heads = 8});
  // Absent means 4096 to transformers; only an explicit null switches the window off.
  const bool off = config.contains("sliding_window") && !reader.has("sliding_window");
  c.sliding_window = off ? 0 : reader.integer("sliding_window", 4096);
  return c;
}

}  // namespace sala
