// The tensor side of the CUDA kernels of block selection: where documents' tiles begin, and slabs.

#include "kernels/selection/cuda.h"

#include <algorithm>
#include <vector>

#include "kernels/cuda_doors.h"
#include "kernels/lightning/launch.h"
#include "kernels/paths.h"
#include "kernels/selection/launch.h"
#include "kernels/to_device.h"

namespace sala {

#ifdef SALA_CUDA

namespace {

int64_t tiles_of(int64_t n, int64_t size) { return (n + size - 1) / size; }
int64_t windows(int64_t num_keys, int64_t half) {
  return std::max<int64_t>(num_keys / half - 1, 0);
}

// Host side of SelectInput's query_tiles and key_tiles, and the longest row of scores.
struct Tiles {
  std::vector<int> query{0}, key{0};
  int64_t row_blocks = 0;

  Tiles(const Documents& q_docs, const Documents& k_docs, const SparseConfig& c,
        int64_t tile_queries) {
    const int64_t all_listed = c.blocks_per_token() * c.block_size;
    for (int64_t d = 0; d < q_docs.count(); ++d) {
      const int64_t nq = q_docs.length(d), nk = k_docs.length(d);
      const int64_t scored =
          std::max<int64_t>(nq - std::max<int64_t>(all_listed - (nk - nq), 0), 0);
      const int64_t fine = scored == 0 ? 0 : tiles_of(windows(nk, c.kernel_stride), kSelectKeyTile);
      const int64_t coarse = scored == 0 ? 0 : tiles_of(windows(nk, c.block_size), kSelectKeyTile);
      query.push_back(query.back() + static_cast<int>(tiles_of(scored, tile_queries)));
      key.push_back(key.back() + static_cast<int>(fine));
      key.push_back(key.back() + static_cast<int>(coarse));
      row_blocks = std::max(row_blocks, fine * kSelectBlockTile);
    }
  }
};

// Query tiles of a slab: what the workspace holds, but not less than kFewestWaves tiles for every
// SM, and whole waves, so that no SM waits for others at a slab's end.
int slab_tiles(int64_t num_tiles, int64_t NKV, int64_t bytes_per_tile, int64_t workspace_bytes) {
  constexpr int64_t kFewestWaves = 4;
  int device = 0, num_sms = 1;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device));
  const int64_t waves = workspace_bytes / bytes_per_tile * NKV / num_sms;
  const int64_t tiles = std::max(waves, kFewestWaves) * num_sms / NKV;
  return static_cast<int>(std::clamp<int64_t>(tiles, 1, std::max<int64_t>(num_tiles, 1)));
}

// What a call lacks of what the kernels need; empty: nothing.
std::string lacking(const at::Tensor& q, const at::Tensor& k, const Documents& k_docs,
                    const SparseConfig& config, double scale) {
  const c10::cuda::CUDAGuard guard(q.device());
  const int64_t group = q.size(1) / k.size(1);
  const int64_t most_blocks = tiles_of(k_docs.longest, config.block_size);
  if (q.scalar_type() != at::kBFloat16) return c10::str("bf16, got ", q.scalar_type());
  if (lightning_arch() != LightningArch::kHopper) return "a GPU of compute capability 9.0";
  if (q.size(2) != 64 && q.size(2) != 128) {
    return c10::str("head size 64 or 128, got ", q.size(2));
  }
  if (group > kSelectMaxGroup) {
    return c10::str("at most ", kSelectMaxGroup, " query heads per KV head, got ", group);
  }
  if (most_blocks > kSelectMaxBlocks) {
    return c10::str("documents of at most ", kSelectMaxBlocks, " blocks, got ", most_blocks);
  }
  if (!(scale > 0)) return c10::str("a positive scale, got ", scale);
  return {};
}

}  // namespace

bool block_select_kernels_run(const at::Tensor& q, const at::Tensor& k, const Documents& k_docs,
                              const SparseConfig& config, double scale) {
  return q.is_cuda() && kernels_run("block_select", lacking(q, k, k_docs, config, scale));
}

at::Tensor block_select_cuda(const at::Tensor& q_any, const at::Tensor& k_any,
                             const Documents& q_docs, const Documents& k_docs,
                             const SparseConfig& config, double scale, int64_t workspace_bytes) {
  const c10::cuda::CUDAGuard guard(q_any.device());
  const at::Tensor q = aligned(q_any), k = aligned(k_any);
  const int64_t NKV = k.size(1), tile_queries = select_tile_queries(q.size(1) / NKV);
  const Tiles tiles(q_docs, k_docs, config, tile_queries);
  std::vector<int> places = tiles.query;
  places.insert(places.end(), tiles.key.begin(), tiles.key.end());
  const at::Tensor places_i32 = queue_to(at::tensor(places, at::kInt), q.device());

  SelectInput input{};
  input.q_offsets = q_docs.offsets_i32.const_data_ptr<int>();
  input.k_offsets = k_docs.offsets_i32.const_data_ptr<int>();
  input.query_tiles = places_i32.const_data_ptr<int>();
  input.key_tiles = input.query_tiles + tiles.query.size();
  input.num_docs = static_cast<int>(q_docs.count());
  input.num_queries = static_cast<int>(q.size(0));
  input.num_heads = static_cast<int>(q.size(1));
  input.num_kv_heads = static_cast<int>(NKV);
  input.head_size = static_cast<int>(q.size(2));
  input.stride = static_cast<int>(config.kernel_stride);
  input.init_blocks = static_cast<int>(config.init_blocks);
  input.local_blocks = static_cast<int>(config.local_blocks());
  input.list_size = static_cast<int>(config.blocks_per_token());
  input.num_key_tiles = tiles.key.back();
  input.scale = static_cast<float>(scale);

  at::Tensor lists =
      at::empty({NKV, q.size(0), config.blocks_per_token()}, q.options().dtype(at::kInt));
  int* out = lists.data_ptr<int>();
  check_launch(launch_select_all(input, out, current_stream()));
  const int num_tiles = tiles.query.back();
  if (num_tiles == 0) return lists;

  const at::Tensor compressed =
      at::zeros({NKV, input.num_key_tiles, kSelectKeyTile, q.size(2)}, k.options());
  check_launch(
      launch_select_compress(k.const_data_ptr(), compressed.data_ptr(), input, current_stream()));
  const int64_t tile_scores = NKV * tile_queries * tiles.row_blocks;
  const int most = slab_tiles(num_tiles, NKV, (tile_scores + tile_scores / 8) * 4, workspace_bytes);
  const at::Tensor scores = at::empty({most * tile_scores}, q.options().dtype(at::kFloat));
  const at::Tensor edges = at::empty({most * tile_scores / 8}, scores.options());
  for (int first = 0; first < num_tiles; first += most) {
    const SelectSlab slab{first, std::min(most, num_tiles - first),
                          static_cast<int>(tiles.row_blocks), scores.data_ptr<float>(),
                          edges.data_ptr<float>()};
    check_launch(launch_select_scores(q.const_data_ptr(), compressed.const_data_ptr(), input, slab,
                                      current_stream()));
    check_launch(launch_select_best(input, slab, out, current_stream()));
  }
  return lists;
}

#else

bool block_select_kernels_run(const at::Tensor&, const at::Tensor&, const Documents&,
                              const SparseConfig&, double) {
  return false;
}
at::Tensor block_select_cuda(const at::Tensor&, const at::Tensor&, const Documents&,
                             const Documents&, const SparseConfig&, double, int64_t) {
  TORCH_CHECK(false, "block_select: this build has no CUDA");
}

#endif

}  // namespace sala
