// What stands between a hybrid and the people who would load it: first what the minicpm_sala format
// cannot say, then what transformers (with the official modelling code) and SGLang refuse.
#include <algorithm>
#include <cmath>

#include "model/families/families.h"

namespace sala {
namespace {

using Kind = RopeConfig::Kind;
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

Lines find_transformers_blockers(const ModelConfig& c) {
  Lines lines;
  if (c.num_heads * c.head_size != c.width) {
    lines.emplace_back("heads * head_dim (" + text(c.num_heads) + " * " + text(c.head_size) +
                       ") is not hidden_size (" + text(c.width) + ")");
  }
  const Kind kind = c.lightning_rope_config.kind;
  if (kind == Kind::kLlama3 || kind == Kind::kYarn) {
    lines.emplace_back("RoPE kind llama3 or yarn is unknown to the official code");
  }
  if (hybrid_config_json(c)["lightning_scale"].is_number()) {
    lines.emplace_back("lightning_scale is a number; the official code would take 1");
  }
  if (c.pad_id >= c.vocab_size) lines.emplace_back("pad_token_id is outside the vocabulary");
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
  if (c.head_size != 128 || 16 % group != 0) {
    lines.emplace_back(
        "transformers: texts of dense_len (" + text(c.sparse.dense_len) +
        ") tokens or more need head size 128 and a group size that divides 16; this has " +
        text(c.head_size) + " and " + text(group));
  }
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
  verdict.transformers_blockers = find_transformers_blockers(config);
  verdict.sglang_blockers = find_sglang_blockers(config);
  verdict.notes = find_notes(config);
  return verdict;
}

std::vector<std::string> loader_lines(const ExportVerdict& verdict) {
  Lines lines;
  const auto add = [&](const std::string& loader, const std::string& needs, const Lines& blockers) {
    std::string reasons;
    for (const std::string& blocker : blockers) reasons += (reasons.empty() ? "" : "; ") + blocker;
    lines.push_back(blockers.empty() ? loader + " loads it" + needs
                                     : loader + " does not load it: " + reasons);
  };
  add("transformers",
      " with the official modelling code: trust_remote_code=True, which fetches it from the hub; "
      "transformers 4 (it was written for 4.56, 5 cannot import it); a CUDA GPU with flash-attn, "
      "infllm_v2 and flash-linear-attention below 0.5",
      verdict.transformers_blockers);
  add("SGLang", " where it has minicpm_sala, on a CUDA GPU", verdict.sglang_blockers);
  lines.insert(lines.end(), verdict.notes.begin(), verdict.notes.end());
  return lines;
}

}  // namespace sala
