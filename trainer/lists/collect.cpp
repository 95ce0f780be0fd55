// Unit by unit; a sparse layer's forward keeps its lists for the backward, which never comes.
#include "trainer/lists/collect.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <stdexcept>

namespace sala {

namespace {

std::vector<int64_t> sparse_layers(const ModelConfig& c) {
  std::vector<int64_t> layers;
  for (int64_t layer = 0; layer < c.num_layers; ++layer) {
    if (c.mixers[static_cast<size_t>(layer)] == Mixer::kSparse) layers.push_back(layer);
  }
  return layers;
}

std::vector<int64_t> wanted_layers(const ModelConfig& c, int64_t layer) {
  const std::vector<int64_t> layers = sparse_layers(c);
  if (layers.empty()) {
    throw std::runtime_error("block lists: expected a hybrid with sparse layers, found none");
  }
  if (layer < 0) return layers;
  if (std::find(layers.begin(), layers.end(), layer) == layers.end()) {
    throw std::runtime_error(fmt::format("block lists: layer {} is not sparse; sparse are {}",
                                         layer, fmt::join(layers, ", ")));
  }
  return {layer};
}

}  // namespace

BlockLists collect_block_lists(const Model& model, Lender& weights, const std::vector<int64_t>& ids,
                               int64_t layer, at::Device device) {
  const ModelConfig& c = model.config();
  const std::vector<int64_t> wanted = wanted_layers(c, layer);
  const auto num_tokens = static_cast<int64_t>(ids.size());
  if (num_tokens < c.sparse.dense_len) {
    throw std::runtime_error(
        fmt::format("block lists: {} tokens are attended densely by this model; give it {} or more "
                    "(its dense_len)",
                    num_tokens, c.sparse.dense_len));
  }
  const at::NoGradGuard no_grad;
  const Batch batch = single_document(ids, 0, device);
  const Env env = model.env(batch, /*sparse=*/true);
  BlockLists lists{c.sparse, c.num_heads, c.head_size, 0, {}};
  at::Tensor x;
  const auto last_unit = static_cast<size_t>(wanted.back()) + 1;  // unit 0 is the embedding
  for (size_t u = 0; u <= last_unit; ++u) {
    const Unit& unit = *model.units()[u];
    const Lease lease = weights.lease(unit.parts);
    const int64_t of_unit = static_cast<int64_t>(u) - 1;
    const bool takes = std::find(wanted.begin(), wanted.end(), of_unit) != wanted.end();
    Saved saved;
    saved.will_forget = Recompute::kFull;  // lists stay, and long rows go in tiles
    x = unit.forward(lease, x, env, takes ? &saved : nullptr);
    if (takes) lists.layers.push_back({of_unit, saved.take("blocks").cpu()});
  }
  return lists;
}

}  // namespace sala
