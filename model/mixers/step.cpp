// Keys and states are moved on first: a token sees itself.
#include "model/mixers/step.h"

#include <cmath>

#include "kernels/decode.h"
#include "model/generation/cache.h"

namespace sala {

at::Tensor step_softmax(Mixer mixer, const MixerCall& call, const Heads& heads) {
  const ModelConfig& c = call.config;
  DecodeCache& cache = call.env.cached->cache;
  KeyCache& keys = cache.layers[call.layer].keys;
  const double scale = 1.0 / std::sqrt(static_cast<double>(c.head_size));
  append_keys(keys, cache.lengths, heads.k, heads.v, c.sparse);
  at::Tensor blocks;
  // A cache without compressed keys is too short for any sequence to select.
  if (mixer == Mixer::kSparse && call.env.sparse && keys.compressed.defined()) {
    blocks = decode_select(heads.q, keys, cache.lengths, c.sparse, scale);
  }
  return decode_attention(heads.q, keys, cache.lengths, blocks, c.sparse, scale)
      .view({heads.q.size(0), c.q_size()});
}

at::Tensor step_lightning(const MixerCall& call, const at::Tensor& q, const at::Tensor& k,
                          const at::Tensor& v, double scale) {
  DecodeCache& cache = call.env.cached->cache;
  return lightning_decode(q, k, v, lightning_slopes(q.size(1)), scale,
                          cache.layers[call.layer].state)
      .view({q.size(0), call.config.q_size()});
}

}  // namespace sala
