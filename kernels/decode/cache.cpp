// What the decode step keeps of softmax layers, and how tokens get there. Compressed keys are the
// means that block_select makes of all keys at once, made when a window ends: the same numbers.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <numeric>

#include "kernels/check.h"
#include "kernels/decode.h"
#include "kernels/decode/cuda.h"
#include "kernels/selection/composed.h"
#include "kernels/to_device.h"

namespace sala {

namespace {

// Windows of 2 * half tokens, one every `half`, within the first n tokens.
int64_t num_windows(int64_t n, int64_t half) { return std::max<int64_t>(n / half - 1, 0); }

CompressedKeys make_tiles(const KeyCacheShape& shape, const at::TensorOptions& options) {
  const CompressedTiles room = compressed_tiles(shape.capacity, *shape.sparse);
  const int64_t S = shape.num_sequences, per_sequence = shape.num_kv_heads * room.count();
  CompressedKeys keys;
  keys.tiles = at::zeros({S, shape.num_kv_heads, room.count(), 128, shape.head_size}, options);
  std::vector<int> places(S + 1);
  std::iota(places.begin(), places.end(), 0);
  for (int64_t s = 0; s < S; ++s) {
    places.push_back(static_cast<int>(s * per_sequence));
    places.push_back(static_cast<int>(s * per_sequence + room.fine));
  }
  places.push_back(static_cast<int>(S * per_sequence));
  keys.places = queue_to(at::tensor(places, at::kInt), shape.device);
  return keys;
}

CompressedKeys make_compressed(const KeyCacheShape& shape, const at::TensorOptions& options) {
  if (decode_select_kernels_run(shape)) return make_tiles(shape, options);
  const int64_t stride = shape.sparse->kernel_stride;
  const auto room = [&](int64_t half) {
    return at::zeros({shape.num_sequences, shape.num_kv_heads, num_windows(shape.capacity, half),
                      shape.head_size},
                     options);
  };
  CompressedKeys keys;
  keys.fine = room(stride);
  keys.coarse = room(4 * stride);
  return keys;
}

bool selects(const KeyCacheShape& shape) {
  return shape.sparse != nullptr && shape.capacity >= shape.sparse->dense_len;
}

// Windows of kept keys (NKV, windows, HS) that end after token `first` and by token `end`, one
// every `half`, from k (capacity, NKV, HS). Coarse ones are made by the same calls, so that their
// bits are block_select's.
void compress_range(at::Tensor kept, const at::Tensor& k, int64_t half, int64_t first, int64_t end,
                    bool coarse, const SparseConfig& config) {
  const int64_t from = num_windows(first, half), to = num_windows(end, half);
  if (to <= from) return;
  const at::Tensor keys =
      k.narrow(0, from * half, (to - from + 1) * half).transpose(0, 1).contiguous();
  const WindowMeans means = window_means(keys, config);
  kept.narrow(1, from, to - from).copy_(coarse ? means.coarse : means.fine);
}

void compress_keys(KeyCache& cache, int64_t s, int64_t first, int64_t end,
                   const SparseConfig& config) {
  const at::Tensor k = cache.k[s];
  const int64_t half = config.kernel_stride;
  compress_range(cache.compressed.fine[s], k, half, first, end, false, config);
  compress_range(cache.compressed.coarse[s], k, 4 * half, first, end, true, config);
}

void check_rows(const KeyCache& cache, const at::Tensor& k, const at::Tensor& v, const char* op) {
  check_input(k, 3, op, "k");
  check_same(v, k, op, "v");
  check_like(k, cache.k, op, "k");
  TORCH_CHECK(k.size(1) == cache.k.size(2) && k.size(2) == cache.k.size(3), op,
              ": expected heads as the cache holds them, ", cache.k.sizes(), ", got ", k.sizes());
}

}  // namespace

DecodeLengths::DecodeLengths(int64_t num_sequences, at::Device device) : host(num_sequences, 0) {
  std::vector<int> step(num_sequences, 1);
  for (int64_t s = 0; s <= num_sequences; ++s) step.push_back(static_cast<int>(s));
  one_more = queue_to(at::tensor(step, at::kInt), device);
  on_device = at::zeros_like(one_more);
}

void DecodeLengths::set(const std::vector<int64_t>& lengths) {
  TORCH_CHECK(lengths.size() == host.size(), "decode lengths: expected ", host.size(), ", got ",
              lengths.size());
  host = lengths;
  std::vector<int> numbers(lengths.begin(), lengths.end());
  numbers.push_back(0);
  for (const int64_t length : lengths) numbers.push_back(static_cast<int>(numbers.back() + length));
  // Into the same memory: graphs have its address.
  on_device.copy_(queue_to(at::tensor(numbers, at::kInt), on_device.device()));
}

void DecodeLengths::add_one() {
  on_device.add_(one_more);
  add_one_on_host();
}

void DecodeLengths::add_one_on_host() {
  for (int64_t& length : host) ++length;
}

bool steps_on_device(const KeyCacheShape& shape) {
  return shape.device.is_cuda() && decode_kernels_run(shape) &&
         (shape.sparse == nullptr ||
          (decode_blocks_run(*shape.sparse) && decode_select_kernels_run(shape)));
}

KeyCache make_key_cache(const KeyCacheShape& shape) {
  TORCH_CHECK(shape.num_sequences > 0 && shape.capacity > 0,
              "decode cache: expected room for sequences and tokens, got ", shape.num_sequences,
              " and ", shape.capacity);
  const at::TensorOptions options = at::TensorOptions(shape.device).dtype(shape.dtype);
  const std::vector<int64_t> sizes{shape.num_sequences, shape.capacity, shape.num_kv_heads,
                                   shape.head_size};
  KeyCache cache{at::empty(sizes, options), at::empty(sizes, options), {}};
  if (selects(shape)) cache.compressed = make_compressed(shape, options);
  return cache;
}

int64_t key_cache_bytes(const KeyCacheShape& shape) {
  int64_t rows = 2 * shape.capacity;
  if (selects(shape)) {
    const int64_t stride = shape.sparse->kernel_stride;
    rows += decode_select_kernels_run(shape)
                ? 128 * compressed_tiles(shape.capacity, *shape.sparse).count()
                : num_windows(shape.capacity, stride) + num_windows(shape.capacity, 4 * stride);
  }
  return shape.num_sequences * rows * shape.num_kv_heads * shape.head_size *
         static_cast<int64_t>(c10::elementSize(shape.dtype));
}

void write_keys(KeyCache& cache, int64_t s, int64_t first, const at::Tensor& k, const at::Tensor& v,
                const SparseConfig& config) {
  const at::NoGradGuard no_grad;
  check_rows(cache, k, v, "write_keys");
  const int64_t n = k.size(0);
  TORCH_CHECK(first >= 0 && first + n <= cache.capacity(), "write_keys: expected at most ",
              cache.capacity(), " tokens of a sequence, got ", first + n);
  cache.k[s].narrow(0, first, n).copy_(k);
  cache.v[s].narrow(0, first, n).copy_(v);
  if (cache.compressed.tiles.defined()) {
    compress_keys_cuda(cache, s, first + n, config);
  } else if (cache.compressed.defined()) {
    compress_keys(cache, s, first, first + n, config);
  }
}

void append_keys(KeyCache& cache, const DecodeLengths& lengths, const at::Tensor& k,
                 const at::Tensor& v, const SparseConfig& config) {
  const at::NoGradGuard no_grad;
  check_rows(cache, k, v, "append_keys");
  TORCH_CHECK(lengths.count() == k.size(0) && cache.k.size(0) == k.size(0),
              "append_keys: expected a token of each of ", cache.k.size(0), " sequences, got ",
              k.size(0), " tokens and ", lengths.count(), " lengths");
  for (const int64_t length : lengths.host) {
    TORCH_CHECK(length > 0 && length <= cache.capacity(), "append_keys: expected 1 to ",
                cache.capacity(), " tokens of each sequence, got ", length);
  }
  if (append_kernel_runs(k, cache)) {
    append_keys_cuda(cache, lengths, k, v, config);  // with tiles: their compressed keys as well
    if (cache.compressed.tiles.defined()) return;
  } else {
    const at::Tensor last = lengths.tokens().to(at::kLong).sub_(1);
    const at::Tensor row = at::arange(k.size(0), last.options());
    at::index_put_(cache.k, {row, last}, k);
    at::index_put_(cache.v, {row, last}, v);
  }
  if (!cache.compressed.defined()) return;
  for (int64_t s = 0; s < lengths.count(); ++s) {
    compress_keys(cache, s, lengths.host[s] - 1, lengths.host[s], config);
  }
}

}  // namespace sala
