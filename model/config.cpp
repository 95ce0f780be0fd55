// What makes a ModelConfig self-consistent.
#include "model/config.h"

#include <algorithm>
#include <sstream>
#include <stdexcept>

namespace sala {
namespace {

// Collects contradictions so that a user sees all of them at once.
class Problems {
 public:
  template <class... Parts>
  void require(bool ok, const Parts&... parts) {
    if (ok) return;
    if (count_++ > 0) text_ << "; ";
    (text_ << ... << parts);
  }
  void raise(const std::string& where) const {
    if (count_ > 0) throw std::runtime_error(where + ": " + text_.str());
  }

 private:
  std::ostringstream text_;
  int count_ = 0;
};

// Positive, also as a float.
bool is_scale(double x) { return x > 1e-30 && x < 1e30; }

void check_size(const char* key, int64_t size, int64_t most, Problems& p) {
  p.require(size > 0, key, " must be positive, got ", size);
  p.require(size <= most, key, " must be at most ", most, ", got ", size);
}

// The bounds are far above every model, and far below what overflows when sizes are multiplied.
void check_sizes(const ModelConfig& c, Problems& p) {
  constexpr int64_t kMostWidth = int64_t{1} << 20, kMostHeads = int64_t{1} << 16;
  check_size("num_hidden_layers", c.num_layers, ModelConfig::kMostLayers, p);
  check_size("hidden_size", c.width, kMostWidth, p);
  check_size("intermediate_size", c.ffn_width, kMostWidth, p);
  check_size("vocab_size", c.vocab_size, int64_t{1} << 28, p);
  check_size("max_position_embeddings", c.max_position, int64_t{1} << 40, p);
  check_size("num_attention_heads", c.num_heads, kMostHeads, p);
  check_size("head_dim", c.head_size, kMostHeads, p);
  p.require(c.num_kv_heads > 0 && (c.num_heads <= 0 || c.num_heads % c.num_kv_heads == 0),
            "num_attention_heads (", c.num_heads, ") must be a multiple of num_key_value_heads (",
            c.num_kv_heads, ")");
  p.require(c.head_size % 2 == 0, "head_dim must be positive and even, got ", c.head_size);
  p.require(is_scale(c.rms_eps), "rms_norm_eps must be positive, got ", c.rms_eps);
  p.require(is_scale(c.embedding_scale) && is_scale(c.residual_scale) && is_scale(c.logit_scale),
            "scale_emb, scale_depth and dim_model_base must be positive");
  p.require(c.lightning_scale == 0 || is_scale(c.lightning_scale),
            "lightning_scale must be positive, got ", c.lightning_scale);
  p.require(c.sliding_window >= 0, "sliding_window must not be negative, got ", c.sliding_window);
}

void check_rope(const RopeConfig& rope, int64_t head_size, const char* which, Problems& p) {
  using Kind = RopeConfig::Kind;
  p.require(rope.theta > 1 && rope.theta < 1e30, which, ": rope_theta must be above 1, got ",
            rope.theta);
  p.require(is_scale(rope.factor), which, ": factor must be positive, got ", rope.factor);
  for (double x : {rope.beta_fast, rope.beta_slow, rope.mscale, rope.mscale_all_dim,
                   rope.attention_factor, rope.low_freq_factor, rope.high_freq_factor}) {
    p.require(x == 0 || is_scale(x), which, ": its parameters must be positive, got ", x);
  }
  const bool scaled =
      rope.kind == Kind::kLlama3 || rope.kind == Kind::kLongrope || rope.kind == Kind::kYarn;
  p.require(!scaled || rope.original_max_position > 1, which,
            ": original_max_position_embeddings must be above 1, got ", rope.original_max_position);
  p.require(rope.kind != Kind::kLlama3 ||
                (rope.low_freq_factor > 0 && rope.high_freq_factor > rope.low_freq_factor),
            which, ": high_freq_factor (", rope.high_freq_factor, ") must exceed low_freq_factor (",
            rope.low_freq_factor, ")");
  if (rope.kind != Kind::kLongrope) return;
  for (const auto* list : {&rope.short_factor, &rope.long_factor}) {
    const bool positive = std::all_of(list->begin(), list->end(), is_scale);
    p.require(static_cast<int64_t>(list->size()) == head_size / 2 && positive, which,
              list == &rope.short_factor ? ": short_factor" : ": long_factor", " needs ",
              head_size / 2, " positive numbers (head_dim / 2), got ", list->size());
  }
}

void check_sparse(const SparseConfig& s, Problems& p) {
  constexpr int64_t kMost = int64_t{1} << 30;  // no product of two overflows
  for (int64_t n : {s.kernel_size, s.kernel_stride, s.init_blocks, s.block_size, s.window_size,
                    s.topk, s.dense_len}) {
    if (n >= 0 && n <= kMost) continue;
    p.require(false, "sparse_config: expected numbers from 0 to ", kMost, ", got ", n);
    return;
  }
  p.require(s.kernel_size > 0 && s.kernel_stride > 0 && s.kernel_size == 2 * s.kernel_stride,
            "sparse_config: kernel_size (", s.kernel_size, ") must be 2 * kernel_stride (",
            s.kernel_stride, ")");
  p.require(s.block_size == 4 * s.kernel_stride, "sparse_config: block_size (", s.block_size,
            ") must be 4 * kernel_stride (", s.kernel_stride, ")");
  p.require(s.block_size > 0 && s.window_size > 0 && s.window_size % s.block_size == 0,
            "sparse_config: window_size (", s.window_size, ") must be a multiple of block_size (",
            s.block_size, ")");
  p.require(s.init_blocks >= 0 && s.topk > s.init_blocks, "sparse_config: topk (", s.topk,
            ") must exceed init_blocks (", s.init_blocks,
            "): the leading blocks and the query's own count among them");
  p.require(s.dense_len >= 0, "sparse_config: dense_len must not be negative, got ", s.dense_len);
}

}  // namespace

const char* to_string(Mixer mixer) {
  switch (mixer) {
    case Mixer::kFull:
      return "full";
    case Mixer::kSparse:
      return "sparse";
    case Mixer::kLightning:
      return "lightning";
  }
  return "unknown";
}

bool ModelConfig::is_hybrid() const {
  return std::any_of(mixers.begin(), mixers.end(), [](Mixer m) { return m != Mixer::kFull; });
}

void ModelConfig::validate(const std::string& where) const {
  Problems problems;
  check_sizes(*this, problems);
  problems.require(static_cast<int64_t>(mixers.size()) == num_layers,
                   "expected one mixer for each of the ", num_layers, " layers, got ",
                   mixers.size());
  const auto has = [&](Mixer m) { return std::count(mixers.begin(), mixers.end(), m) > 0; };
  if (has(Mixer::kFull) || (has(Mixer::kSparse) && sparse_rope)) {
    check_rope(rope, head_size, "rope", problems);
  }
  if (has(Mixer::kSparse)) check_sparse(sparse, problems);
  if (has(Mixer::kLightning)) {
    check_rope(lightning_rope_config, head_size, "lightning rope", problems);
    problems.require(lightning_kv_heads > 0 && num_heads % lightning_kv_heads == 0,
                     "lightning_nh (", num_heads, ") must be a multiple of lightning_nkv (",
                     lightning_kv_heads, ")");
  }
  problems.raise(where);
}

}  // namespace sala
