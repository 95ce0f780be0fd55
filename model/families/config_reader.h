// Typed access to the keys of a config.json, and the parts that all families read alike. A missing
// key, a wrong type or something we cannot represent is one line: file, key, expected, came.
#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"

namespace sala {

// `null` counts as absent unless is_null() is asked. `where` is the file named in errors.
class ConfigReader {
 public:
  ConfigReader(const nlohmann::json& object, std::string where, std::string prefix = "");

  bool has(const char* key) const;      // present and not null
  bool is_null(const char* key) const;  // present and null, where that differs from absent
  int64_t integer(const char* key) const;
  int64_t integer(const char* key, int64_t fallback) const;
  double number(const char* key) const;
  double number(const char* key, double fallback) const;
  bool flag(const char* key, bool fallback) const;
  std::string text(const char* key, const std::string& fallback) const;
  std::vector<double> numbers(const char* key) const;
  std::vector<std::string> texts(const char* key) const;
  std::vector<int64_t> token_ids(const char* key) const;  // an integer, a list or nothing
  ConfigReader object(const char* key) const;             // errors below name "key.inner"
  const nlohmann::json& value(const char* key) const;     // required

  [[noreturn]] void fail(const std::string& key, const std::string& problem) const;

 private:
  const nlohmann::json& object_;
  std::string where_, prefix_;
};

// Sizes, norms, token ids, RoPE, mixers (all full). `kv_heads_default`: what an absent
// num_key_value_heads means (0: as many as query heads, as null does); `head_dim_default` likewise
// (0: hidden_size / num_attention_heads). Refuses quantized weights and activations other than
// SiLU.
struct FamilyDefaults {
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  bool tied_head = false;
};
ModelConfig parse_common(const ConfigReader& reader, const FamilyDefaults& defaults);

// Both forms: top-level rope_theta + rope_scaling ("type" or "rope_type"), and rope_parameters.
// What is stated in both and differs is refused.
RopeConfig parse_rope(const ConfigReader& reader, int64_t max_position);

// muP scalings of the MiniCPM families: scale_emb, scale_depth, dim_model_base.
void parse_mup(const ConfigReader& reader, ModelConfig& config);

// sliding_window where it is on: 4096 when absent, 0 (none) when null.
int64_t parse_window(const ConfigReader& reader);

// Qwen's window: layers named "sliding_attention", or from max_window_layers on. 0 = none.
int64_t parse_qwen_window(const ConfigReader& reader, int64_t num_layers);

}  // namespace sala
