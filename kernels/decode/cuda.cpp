// The tensor side of the CUDA kernels of the decode step. Nothing here depends on the lengths that
// the host knows: a captured call may be replayed for any within the caches' capacity.
#include "kernels/decode/cuda.h"

#include <algorithm>
#include <limits>

#include "kernels/cuda_doors.h"
#include "kernels/decode/launch.h"
#include "kernels/lightning/launch.h"
#include "kernels/paths.h"
#include "kernels/selection/cuda.h"
#include "kernels/selection/launch.h"
#include "kernels/to_device.h"

namespace sala {

namespace {

int64_t tiles_of(int64_t n) {
  return (std::max<int64_t>(n, 0) + kSelectKeyTile - 1) / kSelectKeyTile;
}

}  // namespace

CompressedTiles compressed_tiles(int64_t capacity, const SparseConfig& config) {
  const int64_t stride = config.kernel_stride;
  return {tiles_of(capacity / stride - 1), tiles_of(capacity / (4 * stride) - 1)};
}

#ifdef SALA_CUDA

namespace {

// What a step on a GPU lacks of what the kernels need; empty: nothing.
std::string lacking(at::Device device, at::ScalarType dtype, int64_t group, int64_t head_size) {
  const c10::cuda::CUDAGuard guard(device);
  if (dtype != at::kBFloat16) return c10::str("bf16, got ", dtype);
  if (lightning_arch() == LightningArch::kNone) return "a GPU of compute capability 8.0 or later";
  if (head_size != 64 && head_size != 128) {
    return c10::str("head size 64 or 128, got ", head_size);
  }
  if (group < 1 || group > kDecodeMaxGroup) {
    return c10::str("at most ", kDecodeMaxGroup, " query heads per KV head, got ", group);
  }
  return {};
}
std::string lacking(const at::Tensor& q, const KeyCache& cache) {
  return lacking(q.device(), q.scalar_type(), q.size(1) / cache.k.size(2), q.size(2));
}

// The same for selection, of a step that lacks nothing else.
std::string lacking_for_selection(at::Device device, int64_t capacity, const SparseConfig& config) {
  const c10::cuda::CUDAGuard guard(device);
  if (lightning_arch() != LightningArch::kHopper) return "a GPU of compute capability 9.0";
  const int64_t blocks = capacity / config.block_size;
  if (blocks >= kSelectMaxBlocks) {
    return c10::str("room for fewer than ", kSelectMaxBlocks, " blocks, got ", blocks);
  }
  return {};
}

// What the score kernels know of the sequences: one query each.
SelectInput select_input(const at::Tensor& q, const KeyCache& cache, const DecodeLengths& lengths,
                         const SparseConfig& config, double scale) {
  const int S = static_cast<int>(lengths.count());
  SelectInput input{};
  input.q_offsets = input.query_tiles = cache.compressed.places.const_data_ptr<int>();
  input.key_tiles = input.q_offsets + S + 1;
  input.k_offsets = lengths.on_device.const_data_ptr<int>() + S;
  input.num_docs = input.num_queries = S;
  input.num_heads = static_cast<int>(q.size(1));
  input.num_kv_heads = static_cast<int>(cache.k.size(2));
  input.head_size = static_cast<int>(q.size(2));
  input.stride = static_cast<int>(config.kernel_stride);
  input.init_blocks = static_cast<int>(config.init_blocks);
  input.local_blocks = static_cast<int>(config.local_blocks());
  input.list_size = static_cast<int>(config.blocks_per_token());
  // From one KV head of a sequence to the next.
  input.num_key_tiles = static_cast<int>(cache.compressed.tiles.size(2));
  input.scale = static_cast<float>(scale);
  return input;
}

// Thread blocks for each sequence's tiles of windows, four tiles or more each, so that few long
// sequences fill the chip as well.
int select_parts(int64_t num_tiles, int64_t fine_tiles) {
  int device = 0, num_sms = 1;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device));
  return static_cast<int>(std::clamp<int64_t>(num_sms / num_tiles, 1, (fine_tiles + 3) / 4));
}

}  // namespace

bool decode_kernels_run(const KeyCacheShape& shape) {
  return shape.device.is_cuda() &&
         lacking(shape.device, shape.dtype, shape.num_heads / shape.num_kv_heads, shape.head_size)
             .empty();
}

bool decode_select_kernels_run(const KeyCacheShape& shape) {
  return shape.sparse != nullptr && decode_kernels_run(shape) &&
         lacking_for_selection(shape.device, shape.capacity, *shape.sparse).empty();
}

bool decode_blocks_run(const SparseConfig& config) { return config.block_size % 16 == 0; }

bool append_kernel_runs(const at::Tensor& k, const KeyCache& cache) {
  return k.is_cuda() && kernels_run("append_keys", lacking(k, cache));
}

bool decode_attention_kernels_run(const at::Tensor& q, const KeyCache& cache,
                                  const SparseConfig& config, double scale) {
  if (!q.is_cuda()) return false;
  std::string missing = lacking(q, cache);
  if (!decode_blocks_run(config)) {
    missing = c10::str("blocks of a multiple of 16 tokens, got ", config.block_size);
  }
  if (!(scale > 0)) missing = c10::str("a positive scale, got ", scale);
  return kernels_run("decode_attention", missing);
}

bool decode_select_kernels_run(const at::Tensor& q, const KeyCache& cache,
                               const SparseConfig& config) {
  if (!q.is_cuda()) return false;
  std::string missing = lacking(q, cache);
  if (missing.empty()) missing = lacking_for_selection(q.device(), cache.capacity(), config);
  return kernels_run("decode_select", missing);
}

void compress_keys_cuda(KeyCache& cache, int64_t s, int64_t num_tokens,
                        const SparseConfig& config) {
  const c10::cuda::CUDAGuard guard(cache.k.device());
  const CompressedTiles room = compressed_tiles(cache.capacity(), config);
  if (room.count() == 0) return;
  const std::vector<int> places{0, static_cast<int>(num_tokens), 0, static_cast<int>(room.fine),
                                static_cast<int>(room.count())};
  const at::Tensor on_device = queue_to(at::tensor(places, at::kInt), cache.k.device());
  SelectInput input{};
  input.k_offsets = on_device.const_data_ptr<int>();
  input.key_tiles = input.k_offsets + 2;
  input.num_docs = 1;
  input.num_kv_heads = static_cast<int>(cache.k.size(2));
  input.head_size = static_cast<int>(cache.k.size(3));
  input.stride = static_cast<int>(config.kernel_stride);
  input.num_key_tiles = static_cast<int>(room.count());
  check_launch(launch_select_compress(
      cache.k[s].const_data_ptr(), cache.compressed.tiles[s].data_ptr(), input, current_stream()));
}

void append_keys_cuda(KeyCache& cache, const DecodeLengths& lengths, const at::Tensor& k_any,
                      const at::Tensor& v_any, const SparseConfig& config) {
  const c10::cuda::CUDAGuard guard(cache.k.device());
  const at::Tensor k = aligned(k_any), v = aligned(v_any);
  DecodeAppend x{};
  x.k = k.const_data_ptr();
  x.v = v.const_data_ptr();
  x.k_cache = cache.k.data_ptr();
  x.v_cache = cache.v.data_ptr();
  x.tokens = lengths.on_device.const_data_ptr<int>();
  x.num_sequences = static_cast<int>(k.size(0));
  x.num_kv_heads = static_cast<int>(k.size(1));
  x.capacity = static_cast<int>(cache.capacity());
  if (cache.compressed.tiles.defined()) {
    const CompressedTiles room = compressed_tiles(cache.capacity(), config);
    x.tiles = cache.compressed.tiles.data_ptr();
    x.fine_tiles = static_cast<int>(room.fine);
    x.coarse_tiles = static_cast<int>(room.coarse);
    x.stride = static_cast<int>(config.kernel_stride);
  }
  check_launch(launch_decode_append(x, k.size(2), current_stream()));
}

at::Tensor decode_select_cuda(const at::Tensor& q_any, const KeyCache& cache,
                              const DecodeLengths& lengths, const SparseConfig& config,
                              double scale) {
  const c10::cuda::CUDAGuard guard(q_any.device());
  const at::Tensor q = aligned(q_any);
  const SelectInput input = select_input(q, cache, lengths, config, scale);
  const int64_t S = q.size(0), NKV = cache.k.size(2);
  const int64_t fine_tiles = compressed_tiles(cache.capacity(), config).fine;
  at::Tensor lists = at::empty({NKV, S, config.blocks_per_token()}, q.options().dtype(at::kInt));
  int* out = lists.data_ptr<int>();
  check_launch(launch_select_all(input, out, current_stream()));

  const int64_t row_blocks = fine_tiles * kSelectBlockTile;
  const int64_t tile_scores = NKV * select_tile_queries(q.size(1) / NKV) * row_blocks;
  if (tile_scores == 0) return lists;
  // Scores of as many sequences at a time as the workspace holds.
  const int64_t most = std::clamp<int64_t>(kSelectWorkspaceBytes / (tile_scores * 5), 1, S);
  const at::Tensor scores = at::empty({most * tile_scores}, q.options().dtype(at::kFloat));
  const at::Tensor edges = at::empty({most * tile_scores / 8}, scores.options());
  for (int64_t first = 0; first < S; first += most) {
    const SelectSlab slab{static_cast<int>(first),      static_cast<int>(std::min(most, S - first)),
                          static_cast<int>(row_blocks), scores.data_ptr<float>(),
                          edges.data_ptr<float>(),      select_parts(most * NKV, fine_tiles)};
    check_launch(launch_select_scores(q.const_data_ptr(), cache.compressed.tiles.const_data_ptr(),
                                      input, slab, current_stream()));
    check_launch(launch_select_best(input, slab, out, current_stream()));
  }
  return lists;
}

at::Tensor decode_attention_cuda(const at::Tensor& q_any, const KeyCache& cache,
                                 const DecodeLengths& lengths, const at::Tensor& blocks,
                                 const SparseConfig& config, double scale) {
  const c10::cuda::CUDAGuard guard(q_any.device());
  const at::Tensor q = aligned(q_any);
  at::Tensor o = at::empty_like(q);
  DecodeAttention x{};
  x.q = q.const_data_ptr();
  x.k = cache.k.const_data_ptr();
  x.v = cache.v.const_data_ptr();
  x.tokens = lengths.on_device.const_data_ptr<int>();
  x.num_sequences = static_cast<int>(q.size(0));
  x.num_kv_heads = static_cast<int>(cache.k.size(2));
  x.group = static_cast<int>(q.size(1)) / x.num_kv_heads;
  x.capacity = static_cast<int>(cache.capacity());
  x.block_size = 64;
  if (blocks.defined()) {
    x.lists = blocks.const_data_ptr<int>();
    x.list_size = static_cast<int>(blocks.size(2));
    x.block_size = static_cast<int>(config.block_size);
    constexpr int64_t kMost = std::numeric_limits<int>::max();
    x.dense_len = static_cast<int>(std::min(config.dense_len, kMost));
  }
  x.scale = static_cast<float>(scale);
  x.o = o.data_ptr();
  const at::TensorOptions wide = q.options().dtype(at::kFloat);
  const int64_t splits = decode_num_splits(x);
  const at::Tensor part_o = at::empty({q.size(0), q.size(1), splits, q.size(2)}, wide);
  const at::Tensor part_weight = at::empty({q.size(0), q.size(1), splits, 2}, wide);
  x.part_o = part_o.data_ptr<float>();
  x.part_weight = part_weight.data_ptr<float>();
  check_launch(launch_decode_attention(x, q.size(2), current_stream()));
  return o;
}

#else

bool decode_kernels_run(const KeyCacheShape&) { return false; }
bool decode_select_kernels_run(const KeyCacheShape&) { return false; }
bool decode_blocks_run(const SparseConfig&) { return false; }

bool append_kernel_runs(const at::Tensor&, const KeyCache&) { return false; }
bool decode_attention_kernels_run(const at::Tensor&, const KeyCache&, const SparseConfig&, double) {
  return false;
}
bool decode_select_kernels_run(const at::Tensor&, const KeyCache&, const SparseConfig&) {
  return false;
}
void compress_keys_cuda(KeyCache&, int64_t, int64_t, const SparseConfig&) {
  TORCH_CHECK(false, "write_keys: this build has no CUDA");
}
void append_keys_cuda(KeyCache&, const DecodeLengths&, const at::Tensor&, const at::Tensor&,
                      const SparseConfig&) {
  TORCH_CHECK(false, "append_keys: this build has no CUDA");
}
at::Tensor decode_select_cuda(const at::Tensor&, const KeyCache&, const DecodeLengths&,
                              const SparseConfig&, double) {
  TORCH_CHECK(false, "decode_select: this build has no CUDA");
}
at::Tensor decode_attention_cuda(const at::Tensor&, const KeyCache&, const DecodeLengths&,
                                 const at::Tensor&, const SparseConfig&, double) {
  TORCH_CHECK(false, "decode_attention: this build has no CUDA");
}

#endif

}  // namespace sala
