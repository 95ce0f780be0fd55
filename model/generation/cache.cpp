// The shapes of what is kept, layer by layer.
#include "model/generation/cache.h"

#include <algorithm>

namespace sala {

namespace {

KeyCacheShape key_shape(const ModelConfig& c, Mixer mixer, const DecodeCacheShape& shape) {
  KeyCacheShape keys;
  keys.num_sequences = shape.num_sequences;
  keys.capacity = shape.capacity;
  keys.num_heads = c.num_heads;
  keys.num_kv_heads = c.num_kv_heads;
  keys.head_size = c.head_size;
  keys.dtype = shape.dtype;
  keys.device = shape.device;
  keys.sparse = mixer == Mixer::kSparse && shape.sparse ? &c.sparse : nullptr;
  return keys;
}

at::ScalarType state_type(const DecodeCacheShape& shape) {
  return shape.dtype == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace

DecodeCache::DecodeCache(const ModelConfig& c, const DecodeCacheShape& s)
    : shape(s), lengths(s.num_sequences, s.device) {
  const at::TensorOptions wide = at::TensorOptions(s.device).dtype(state_type(s));
  for (const Mixer mixer : c.mixers) {
    LayerCache& layer = layers.emplace_back();
    if (mixer == Mixer::kLightning) {
      layer.state = at::zeros({s.num_sequences, c.num_heads, c.head_size, c.head_size}, wide);
    } else {
      layer.keys = make_key_cache(key_shape(c, mixer, s));
    }
  }
}

int64_t DecodeCache::num_bytes(const ModelConfig& c, const DecodeCacheShape& s) {
  const auto state_size = static_cast<int64_t>(c10::elementSize(state_type(s)));
  int64_t total = 0;
  for (const Mixer mixer : c.mixers) {
    total += mixer == Mixer::kLightning
                 ? s.num_sequences * c.num_heads * c.head_size * c.head_size * state_size
                 : key_cache_bytes(key_shape(c, mixer, s));
  }
  return total;
}

bool DecodeCache::steps_on_device(const ModelConfig& c) const {
  return shape.device.is_cuda() && std::all_of(c.mixers.begin(), c.mixers.end(), [&](Mixer mixer) {
           return mixer == Mixer::kLightning || sala::steps_on_device(key_shape(c, mixer, shape));
         });
}

}  // namespace sala
