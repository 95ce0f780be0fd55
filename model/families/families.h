// The registry of model families: how a Hugging Face config.json of each becomes a ModelConfig.
// A family is one file (model/families/<name>.cpp) and one line in families.cpp.
#pragma once

#include <nlohmann/json.hpp>

#include <string>
#include <vector>

#include "model/config.h"

namespace sala {

struct Family {
  const char* model_type;  // config.json's model_type
  // Throws std::runtime_error (one line, names the key and `where`) for what cannot be represented.
  ModelConfig (*parse)(const nlohmann::json& config, const std::string& where);
};

const std::vector<Family>& families();

// Dispatches on model_type; accepts both the hub's form (rope_theta + rope_scaling at top level)
// and transformers 5's (rope_parameters). `where` is the file named in errors.
ModelConfig parse_model_config(const nlohmann::json& config, const std::string& where);

// The hybrid's config.json, every flag explicit (release format of MiniCPM-SALA).
nlohmann::json hybrid_config_json(const ModelConfig& config);

// Why a hybrid cannot be written in the minicpm_sala format (empty = it can), and why SGLang will
// not load it (empty = it will). transformers loads all of them, with the code that export writes
// beside the weights. Of a model of full attention, which keeps its own format, the verdict has
// nothing to say.
struct ExportVerdict {
  std::vector<std::string> refusals;
  std::vector<std::string> sglang_blockers;
  std::vector<std::string> notes;  // it loads, but with this limit or this option
};
ExportVerdict export_verdict(const ModelConfig& config);
// The verdict for people: who loads the folder and what that takes, who does not and why, notes.
// `with_code`: whether the folder has that code, or will have it.
std::vector<std::string> loader_lines(const ExportVerdict& verdict, bool with_code = true);

}  // namespace sala
