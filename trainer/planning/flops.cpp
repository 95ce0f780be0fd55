// Counting matrix products; flops.h states the convention.
#include "trainer/planning/flops.h"

#include <algorithm>

#include "kernels/selection/loss.h"
#include "model/weights/parts.h"

namespace sala {

namespace {

int64_t count(const Layout& layout) {
  int64_t n = 0;
  for (const Entry& entry : layout.entries) n += entry.num_elements();
  return n;
}

}  // namespace

int64_t mixer_parameters(const ModelConfig& c, Mixer mixer) {
  return count(mixer_layout(c, 0, mixer));
}

int64_t num_parameters(const ModelConfig& c) {
  int64_t n = 0;
  for (const Layout& layout : model_layouts(c)) n += count(layout);
  return n;
}

double mixer_flops(const ModelConfig& c, Mixer mixer, int64_t length, bool sparse) {
  const double width = static_cast<double>(c.q_size());
  double keys = length / 2.0;  // that a query meets on average
  double select = 0;
  if (mixer == Mixer::kLightning) {
    keys = c.head_size;  // the state: one product to write it, one to read it
  } else if (mixer == Mixer::kSparse && sparse && length >= c.sparse.dense_len) {
    keys = std::min<double>(keys, c.sparse.blocks_per_token() * c.sparse.block_size);
    const double windows = length / 2.0 / c.sparse.kernel_stride;
    select = 2 * width * windows * 1.25;  // the fine windows, and a quarter as many coarse ones
  }
  return 2.0 * mixer_parameters(c, mixer) + 4 * width * keys + select;
}

double mlp_flops(const ModelConfig& c) { return 6.0 * c.width * c.ffn_width; }
double head_flops(const ModelConfig& c) { return 2.0 * c.width * c.vocab_size; }

double forward_flops(const ModelConfig& c, int64_t length, bool sparse) {
  double flops = head_flops(c) + c.num_layers * mlp_flops(c);
  for (Mixer mixer : c.mixers) flops += mixer_flops(c, mixer, length, sparse);
  return flops;
}

double selection_loss_flops(const ModelConfig& c, int64_t length) {
  const int64_t stride = SelectionLossOptions{}.query_stride;
  const int64_t first = first_taught_position(c.sparse, stride);
  if (first >= length) return 0;
  const auto queries = static_cast<double>((length - 1 - first) / stride + 1);
  const auto windows =
      static_cast<double>((length - c.sparse.kernel_size) / c.sparse.kernel_stride + 1);
  // Scores of the keys; scores of the windows, and the gradients of either side. At most: slabs of
  // queries leave out what none of theirs sees.
  const double of_query =
      2.0 * static_cast<double>(c.q_size()) * (static_cast<double>(length) + 3 * windows);
  const auto layers = std::count(c.mixers.begin(), c.mixers.end(), Mixer::kSparse);
  return static_cast<double>(layers) * queries * of_query / static_cast<double>(length);
}

}  // namespace sala
