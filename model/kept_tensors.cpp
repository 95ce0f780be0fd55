// The lists of model/block.cpp and model/mixers/, by size.
#include "model/kept_tensors.h"

#include <algorithm>

#include "kernels/fp8.h"
#include "kernels/selection/composed.h"
#include "kernels/selection/loss.h"
#include "model/feed_forward.h"
#include "model/weights/parts.h"

namespace sala {

namespace {

constexpr int64_t kStatisticBytes = 4;  // fp32
constexpr int64_t kBlockNumberBytes = 4;

// What a mixer adds to its block's list.
std::vector<KeptTensor> mixer_tensors(const ModelConfig& c, Mixer mixer, const PassShape& shape) {
  std::vector<KeptTensor> kept;
  auto values = [&](const char* name, int64_t width, Cost cost) {
    kept.push_back({name, shape.tokens * width * shape.value_bytes, cost});
  };
  auto statistics = [&](const char* name, int64_t width, Cost cost) {
    kept.push_back({name, shape.tokens * width * kStatisticBytes, cost});
  };
  const int64_t q = c.q_size(), kv = c.kv_size(mixer);
  const bool gate = gate_name(c, mixer) != nullptr;
  const bool output_norm = mixer == Mixer::kLightning && c.lightning_output_norm;
  values("mixer_input", c.width, Cost::kElementwise);
  if (has_qk_norm(c, mixer)) {
    values("q_raw", q, Cost::kProduct);
    statistics("q_rstd", c.num_heads, Cost::kElementwise);
    values("q", q, Cost::kElementwise);
    values("k_raw", kv, Cost::kProduct);
    statistics("k_rstd", kv / c.head_size, Cost::kElementwise);
    values("k", kv, Cost::kElementwise);
  } else {
    values("q", q, Cost::kProduct);
    values("k", kv, Cost::kProduct);
  }
  values("v", kv, Cost::kProduct);
  if (gate) values("z", q, Cost::kProduct);
  const bool selects = mixer == Mixer::kSparse && shape.selects;
  if (selects) {
    const int64_t listed = c.sparse.blocks_per_token() * c.num_kv_heads;
    kept.push_back({"blocks", shape.tokens * listed * kBlockNumberBytes, Cost::kAttention});
  }
  if (mixer == Mixer::kLightning) {
    values("attention", q, Cost::kProduct);
  } else {
    statistics(selects ? "lse_sparse" : "lse_dense", c.num_heads, Cost::kAttention);
    values("attention", q, Cost::kAttention);
  }
  if (gate || output_norm) values("gated", q, Cost::kElementwise);
  if (output_norm) statistics("gated_rstd", 1, Cost::kElementwise);
  return kept;
}

}  // namespace

std::vector<KeptTensor> kept_tensors(const ModelConfig& c, Mixer mixer, const PassShape& shape) {
  std::vector<KeptTensor> kept = mixer_tensors(c, mixer, shape);
  auto values = [&](const char* name, int64_t width, Cost cost) {
    kept.push_back({name, shape.tokens * width * shape.value_bytes, cost});
  };
  auto statistics = [&](const char* name, int64_t width, Cost cost) {
    kept.push_back({name, shape.tokens * width * kStatisticBytes, cost});
  };
  statistics("input_rstd", 1, Cost::kElementwise);
  values("h", c.width, Cost::kProduct);
  values("mlp_input", c.width, Cost::kElementwise);
  statistics("mlp_rstd", 1, Cost::kElementwise);
  values("gate_up", 2 * c.ffn_width, Cost::kProduct);
  values("act", c.ffn_width, Cost::kElementwise);
  return kept;
}

int64_t kept_bytes(const ModelConfig& c, Mixer mixer, const PassShape& shape, Recompute recompute) {
  int64_t bytes = shape.tokens * c.width * shape.value_bytes;  // the input
  for (const KeptTensor& tensor : kept_tensors(c, mixer, shape)) {
    const bool dropped = (tensor.cost == Cost::kElementwise && recompute != Recompute::kNone) ||
                         (tensor.cost == Cost::kProduct && recompute == Recompute::kFull);
    if (!dropped) bytes += tensor.num_bytes;
  }
  return bytes;
}

int64_t align_moment_bytes(const ModelConfig& source, const ModelConfig& c, Mixer mixer,
                           const PassShape& shape) {
  // The teacher's layer stands between its mixer and its feed-forward part: x, norm(x), its heads,
  // attention and output. The mixer's list beside it, of which norm(x) is the first; its output;
  // then either both outputs and their difference in fp32, or the backward.
  const int64_t value = shape.tokens * shape.value_bytes;
  const int64_t teacher =
      3 * source.width + 2 * source.q_size() + 2 * source.kv_size(source.mixers[0]);
  int64_t kept = 0;
  for (const KeptTensor& tensor : mixer_tensors(c, mixer, shape)) {
    if (tensor.name != "mixer_input") kept += tensor.num_bytes;
  }
  const int64_t differences = 4 * shape.tokens * c.width * kStatisticBytes;
  const int64_t q = c.q_size(), kv = c.kv_size(mixer);
  const int64_t backward = value * (3 * c.width + 2 * (2 * q + 2 * kv) + q);
  const int64_t aligning = value * (teacher + c.width) + kept + std::max(differences, backward);
  return std::max(aligning, forward_moment_bytes(source, source.mixers[0], shape));
}

int64_t forward_moment_bytes(const ModelConfig& c, Mixer mixer, const PassShape& shape) {
  // Nothing is kept: all projections and their parts, or gate, up and their product, beside x, the
  // residual stream and a norm.
  const int64_t q = c.q_size(), kv = c.kv_size(mixer);
  const int64_t in_mixer = 2 * (2 * q + 2 * kv) + 2 * q, in_mlp = 3 * c.ffn_width;
  const int64_t at_once = feed_forward_tokens(shape.tokens, /*keeps=*/false);
  return shape.value_bytes *
         (3 * shape.tokens * c.width + std::max(shape.tokens * in_mixer, at_once * in_mlp));
}

int64_t backward_moment_bytes(const ModelConfig& c, Mixer mixer, const PassShape& shape,
                              Recompute recompute) {
  const int64_t q = c.q_size(), kv = c.kv_size(mixer), T = shape.tokens;
  const int64_t at_once = feed_forward_tokens(T, recompute != Recompute::kFull);
  const bool in_tiles = at_once < T;
  int64_t again =
      kept_bytes(c, mixer, shape, Recompute::kNone) - kept_bytes(c, mixer, shape, recompute);
  if (in_tiles) again -= 3 * T * c.ffn_width * shape.value_bytes;
  // The feed-forward half comes first: gradients at act (F) and gate | up (2F), beside these two
  // where they are of a tile, and in tiles du.
  const int64_t in_mlp = at_once * (in_tiles ? 6 : 3) * c.ffn_width + (in_tiles ? T * c.width : 0);
  // In the mixer they and what led to them are gone: at the projections' gradients, as attention
  // gives them and side by side, and at attention's.
  const int64_t in_mixer = T * ((2 * q + 2 * kv) + (q + 2 * kv) + q);
  int64_t gone = 0;
  for (const KeptTensor& tensor : kept_tensors(c, mixer, shape)) {
    const bool of_mlp = tensor.name == "gate_up" || tensor.name == "act";
    if (tensor.name == "h" || tensor.name == "mlp_input" || tensor.name == "gated" ||
        tensor.name == "z" || (of_mlp && !in_tiles)) {
      gone += tensor.num_bytes;
    }
  }
  // Beside them dy, dx and the residual stream's.
  return again + shape.value_bytes * 3 * T * c.width +
         std::max(shape.value_bytes * in_mlp, shape.value_bytes * in_mixer - gone);
}

int64_t fp8_moment_bytes(const ModelConfig& c, Mixer mixer, const PassShape& shape,
                         Recompute recompute, const Matmul& matmul) {
  constexpr int64_t kScaleBytes = 4;
  // Without bf16 there are no FP8 cores, and both operands are widened to fp32.
  const bool cores = shape.value_bytes == 2;
  // Of operands (M, K) and (N, K).
  const auto operands = [&](int64_t M, int64_t N, int64_t K) {
    return (cores ? 1 : 1 + 4) * (M + N) * K + kScaleBytes * (M + N);
  };
  const int64_t tile = feed_forward_tokens(shape.tokens, recompute != Recompute::kFull);
  int64_t most = 0;
  for (const auto& [name, in, out, feed_forward] : block_products(c, mixer)) {
    const int64_t T = feed_forward ? tile : shape.tokens;
    if (!matmul.in_fp8(T, in, out)) continue;
    most = std::max({most, operands(T, out, in), operands(T, in, out)});
    if (!matmul.fp8_gradients) continue;
    // dy by rows beside the operands; the product's own memory, or the product in bf16.
    const int64_t rows = T * out + kScaleBytes * T;
    const int64_t beside = cores ? std::max(kFp8AddBytes, 2 * in * out) : 0;
    most = std::max(most, operands(out, in, T) + rows + beside);
  }
  return most;
}

int64_t selection_moment_bytes(const ModelConfig& c, int64_t tokens, int64_t key_tokens,
                               int64_t length, bool cuda) {
  constexpr int64_t kFloatBytes = 4;
  const int64_t stride = SelectionLossOptions{}.query_stride;
  const int64_t scores = std::min(c.num_heads * (length / stride + 1) * tokens * kFloatBytes,
                                  cuda ? kSelectionLossBytesCuda : kSelectionLossBytesCpu);
  // Scores, their softmax and its mean over the heads; keys on their way to fp32, padded to twice
  // as many.
  return 3 * scores + 5 * key_tokens * c.kv_size(Mixer::kSparse) * kFloatBytes;
}

}  // namespace sala
