// What stands between a hybrid and the people who would load it: first what the minicpm_sala format
// cannot say, then what SGLang refuses.
#include <algorithm>
#include <cmath>

#include "model/families/families.h"

namespace sala {
namespace {

using Lines = std::vector<std::string>;

std::string text(int64_t n) { return std::to_string(n); }

Lines find_refusals(const ModelConfig& c) {
  Lines lines;
  const auto first_full = std::find(c.mixers.begin(), c.mixers.end(), Mixer::kFull);
  if (first_full != c.mixers.end()) {
    lines.emplace_back(
        "layer " + text(first_full - c.mixers.begin()) +
        " is full attention with RoPE; the format has only sparse and lightning layers "
        "(run swap first)");
  } else if (c.mixers.empty() || c.mixers[0] != Mixer::kSparse) {
    lines.emplace_back("layer 0 is not sparse; the loaders count tokens there (keep layer 0)");
  }
  if (c.sparse_qk_norm) {
    lines.emplace_back(
        "the sparse layers have a norm on q and k; the format has none there "
        "(swap with qk_norm: drop)");
  }
  if (c.qkv_bias != c.out_bias) {
    lines.emplace_back(
        "attention biases on q, k, v only; attention_bias covers o_proj and the gates "
        "too (add zero biases there)");
  }
  const RopeConfig &rope = c.rope, &other = c.lightning_rope_config;
  if (c.sparse_rope && (rope.kind != other.kind || rope.theta != other.theta)) {
    lines.emplace_back("sparse and lightning layers have different RoPE; the format has one");
  }
  const nlohmann::json written = hybrid_config_json(c);
  const double root = std::sqrt(static_cast<double>(c.num_layers));
  if (written["scale_depth"].get<double>() / root != c.residual_scale) {
    lines.emplace_back("the residual scale is not scale_depth / sqrt(layers) of any scale_depth");
  }
  const double base = written["dim_model_base"].get<double>();
  if (base / static_cast<double>(c.width) != c.logit_scale) {
    lines.emplace_back("the logit scale is not an integer over hidden_size");
  }
  return lines;
}

Lines find_sglang_blockers(const ModelConfig& c) {
  Lines lines;
  if (c.qkv_bias) lines.emplace_back("attention biases; SGLang drops them silently");
  if (c.lightning_kv_heads != c.num_heads) {
    lines.emplace_back("lightning_nkv (" + text(c.lightning_kv_heads) + ") is not lightning_nh (" +
                       text(c.num_heads) + ")");
  }
  if (c.head_size % 128 != 0) {
    lines.emplace_back("lightning decoding needs a head size that is a multiple of 128, this has " +
                       text(c.head_size));
  }
  const int64_t chosen = c.sparse.blocks_per_token() * c.sparse.block_size;
  const int64_t needed = std::max(c.sparse.dense_len, chosen);
  if (c.max_position < needed) {
    lines.emplace_back("the context (" + text(c.max_position) + " tokens) is shorter than " +
                       text(needed) +
                       ", the larger of dense_len and (topk + local blocks) * block_size");
  }
  return lines;
}

Lines find_notes(const ModelConfig& c) {
  Lines lines;
  const int64_t group = c.num_heads / c.num_kv_heads;
  if (group != 16) {
    lines.emplace_back("SGLang: its sparse backend needs 16 query heads per KV head, this has " +
                       text(group) + "; choose a dense attention backend");
  }
  return lines;
}

}  // namespace

ExportVerdict export_verdict(const ModelConfig& config) {
  ExportVerdict verdict;
  verdict.refusals = find_refusals(config);
  verdict.sglang_blockers = find_sglang_blockers(config);
  verdict.notes = find_notes(config);
  return verdict;
}

std::vector<std::string> loader_lines(const ExportVerdict& verdict, bool with_code) {
  std::string blockers;
  for (const std::string& blocker : verdict.sglang_blockers) {
    blockers += (blockers.empty() ? "" : "; ") + blocker;
  }
  Lines lines;
  lines.emplace_back(
      with_code
          ? "transformers loads it: version 4.56 or later, or 5, with trust_remote_code=True; "
            "offline, on any device"
          : "transformers does not load it offline: the folder has no modelling code for it; "
            "an export (sala-train RECIPE --export FOLDER) writes the code too");
  lines.push_back(blockers.empty() ? "SGLang loads it where it has minicpm_sala, on a CUDA GPU"
                                   : "SGLang does not load it: " + blockers);
  lines.insert(lines.end(), verdict.notes.begin(), verdict.notes.end());
  return lines;
}

}  // namespace sala
