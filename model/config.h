// What a model is: one plain struct for every source family and for the hybrid. Filled from a
// Hugging Face config.json by model/families/families.h, checked by validate(), written back by
// export.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/ops.h"

namespace sala {

enum class Mixer { kFull, kSparse, kLightning };  // softmax with RoPE; InfLLM-V2; linear

const char* to_string(Mixer mixer);

// Rotary position embedding as the source's config.json states it (model/rope.h has the formulas).
struct RopeConfig {
  enum class Kind { kDefault, kLinear, kLlama3, kLongrope, kYarn };
  Kind kind = Kind::kDefault;
  double theta = 10000.0;
  double factor = 1.0;                // linear, llama3, yarn, longrope (where given)
  double low_freq_factor = 1.0;       // llama3
  double high_freq_factor = 4.0;      // llama3
  int64_t original_max_position = 0;  // llama3, yarn, longrope: tokens
  double beta_fast = 32.0;            // yarn
  double beta_slow = 1.0;             // yarn
  double mscale = 0.0;                // yarn; 0 = not stated
  double mscale_all_dim = 0.0;        // yarn; 0 = not stated
  double attention_factor = 0.0;      // yarn, longrope; 0 = derived by the kind's own rule
  bool truncate = true;               // yarn
  std::vector<double> long_factor;    // longrope, HS/2
  std::vector<double> short_factor;   // longrope, HS/2

  bool operator==(const RopeConfig&) const = default;
};

struct ModelConfig {
  static constexpr int64_t kMostLayers = 10'000;

  std::string family;              // llama, minicpm, qwen2, qwen3, mistral, minicpm_sala
  int64_t num_layers = 0;          // L
  int64_t width = 0;               // C
  int64_t ffn_width = 0;           // F
  int64_t vocab_size = 0;          // V
  int64_t num_heads = 0;           // NH
  int64_t num_kv_heads = 0;        // NKV of full and sparse layers
  int64_t lightning_kv_heads = 0;  // NKV of lightning layers (export writes NH)
  int64_t head_size = 0;           // HS
  int64_t max_position = 0;        // tokens
  int64_t sliding_window = 0;      // tokens; 0 = none. Full attention is exact only below it.
  double rms_eps = 1e-6;
  bool tied_head = false;
  bool qkv_bias = false;        // on q, k, v
  bool out_bias = false;        // on o_proj, o_gate, z_proj
  bool full_qk_norm = false;    // per-head norm of q and k on full layers (Qwen3)
  bool sparse_qk_norm = false;  // kept from a QK-norm source (`qk_norm: keep`); not exportable
  bool lightning_qk_norm = true;
  bool lightning_rope = true;
  bool lightning_output_norm = true;
  bool lightning_output_gate = true;
  bool sparse_rope = false;  // HyPE: none on sparse layers
  bool sparse_output_gate = true;
  double lightning_scale = 0;    // alpha; 0 = HS^-1/2
  double embedding_scale = 1.0;  // muP scale_emb
  double residual_scale = 1.0;   // muP scale_depth / sqrt(L)
  double logit_scale = 1.0;      // muP dim_model_base / C
  double scale_depth = 0.0;    // as stated in a source that has it (export repeats it); 0 = derive
  int64_t dim_model_base = 0;  // likewise
  double initializer_range = 0.02;
  RopeConfig rope;                   // of full layers
  RopeConfig lightning_rope_config;  // of lightning layers: the source's theta, no scaling
  SparseConfig sparse;
  std::vector<Mixer> mixers;  // L entries
  std::vector<int64_t> bos_ids, eos_ids;
  int64_t pad_id = -1;

  bool is_hybrid() const;
  int64_t q_size() const { return num_heads * head_size; }
  int64_t kv_size(Mixer mixer) const {
    return (mixer == Mixer::kLightning ? lightning_kv_heads : num_kv_heads) * head_size;
  }
  // Throws std::runtime_error with every contradiction in one message; `where` names the file.
  void validate(const std::string& where) const;
};

}  // namespace sala
