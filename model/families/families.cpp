// The registry. A new family: write model/families/<name>.cpp with parse_<name>, add its line here.
#include "model/families/families.h"

#include <stdexcept>

#include "model/families/config_reader.h"

// One line per family, by its model_type.
#define SALA_FAMILIES(X) \
  X(llama)               \
  X(minicpm)             \
  X(minicpm_sala)        \
  X(mistral)             \
  X(qwen2)               \
  X(qwen3)

namespace sala {

#define SALA_DECLARE(name) ModelConfig parse_##name(const nlohmann::json&, const std::string&);
SALA_FAMILIES(SALA_DECLARE)
#undef SALA_DECLARE

const std::vector<Family>& families() {
#define SALA_ENTRY(name) Family{#name, parse_##name},
  static const std::vector<Family> list = {SALA_FAMILIES(SALA_ENTRY)};
#undef SALA_ENTRY
  return list;
}

ModelConfig parse_model_config(const nlohmann::json& config, const std::string& where) {
  if (!config.is_object()) {
    throw std::runtime_error(where + ": expected a JSON object, got " + config.type_name());
  }
  const auto type = config.find("model_type");
  if (type == config.end() || !type->is_string()) {
    throw std::runtime_error(where + ": model_type: expected this key to name the model family");
  }
  std::string known;
  for (const Family& family : families()) {
    if (*type == family.model_type) {
      ModelConfig parsed = family.parse(config, where);
      parsed.family = family.model_type;
      parsed.validate(where);
      return parsed;
    }
    known += (known.empty() ? "" : ", ") + std::string(family.model_type);
  }
  ConfigReader(config, where)
      .fail("model_type", "known: " + known + "; got \"" + type->get<std::string>() + "\"");
}

}  // namespace sala
