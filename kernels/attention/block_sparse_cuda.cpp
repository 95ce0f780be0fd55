// The tensor side of the CUDA kernels of block-sparse attention: shapes, and room for the lists by
// columns. Every size comes from the host's documents: nothing waits for the device.

#include "kernels/attention/block_sparse_cuda.h"

#include <string>

#include "kernels/attention/block_sparse_launch.h"
#include "kernels/cuda_doors.h"
#include "kernels/paths.h"

namespace sala {

#ifdef SALA_CUDA

namespace {

static_assert(kSparseBlock == Documents::kTileTokens);

BlockSparseShape shape_of(const at::Tensor& q, const at::Tensor& k, const at::Tensor& blocks,
                          const Documents& q_docs, const Documents& k_docs, double scale) {
  BlockSparseShape shape{};
  shape.lists = blocks.const_data_ptr<int>();
  shape.q_offsets = q_docs.offsets_i32.const_data_ptr<int>();
  shape.q_tiles = q_docs.tiles_i32.const_data_ptr<int>();
  shape.k_offsets = k_docs.offsets_i32.const_data_ptr<int>();
  shape.k_tiles = k_docs.tiles_i32.const_data_ptr<int>();
  shape.num_docs = static_cast<int>(q_docs.count());
  shape.num_q_tiles = static_cast<int>(q_docs.num_tiles);
  shape.num_blocks = static_cast<int>(k_docs.num_tiles);
  shape.num_kv_heads = static_cast<int>(k.size(1));
  shape.group = static_cast<int>(q.size(1) / k.size(1));
  shape.list_length = static_cast<int>(blocks.size(2));
  shape.tile_tokens = block_sparse_tile_tokens(shape.group);
  shape.num_queries = static_cast<int>(q.size(0));
  shape.num_keys = static_cast<int>(k.size(0));
  shape.scale = static_cast<float>(scale);
  return shape;
}

// The lists of a call by columns, and the memory that they lie in.
struct Columns {
  ListColumns lists;
  at::Tensor ints, starts;

  Columns(const BlockSparseShape& shape, const at::Tensor& blocks)
      : lists(plan_list_columns(shape)) {
    const int64_t num_columns = lists.num_columns;
    const int64_t sizes[] = {num_columns * lists.num_chunks,
                             num_columns,
                             num_columns + 1,
                             num_columns + 1,
                             lists.max_pieces,
                             blocks.numel()};
    int** const places[] = {&lists.counts,       &lists.sizes,         &lists.first_pieces,
                            &lists.first_shared, &lists.piece_columns, &lists.tokens};
    int64_t total = 0;
    for (const int64_t size : sizes) total += size;
    ints = at::empty({total}, blocks.options());
    starts = at::empty({num_columns}, blocks.options().dtype(at::kLong));
    lists.starts = starts.data_ptr<int64_t>();
    int* next = ints.data_ptr<int>();
    for (size_t i = 0; i < std::size(sizes); ++i) {
      *places[i] = next;
      next += sizes[i];
    }
  }
};

// What a call lacks of what the kernels need; empty: nothing.
std::string lacking(const at::Tensor& q, const at::Tensor& k, int64_t block_size, double scale) {
  const c10::cuda::CUDAGuard guard(q.device());
  const int64_t group = q.size(1) / k.size(1);
  if (q.scalar_type() != at::kBFloat16) return c10::str("bf16, got ", q.scalar_type());
  if (q.size(2) != 64 && q.size(2) != 128) {
    return c10::str("head size 64 or 128, got ", q.size(2));
  }
  if (!block_sparse_kernels_fit(q.size(2))) {
    return "a GPU of compute capability 8.0 or later with more shared memory";
  }
  if (group > kSparseMaxGroup) {
    return c10::str("at most ", kSparseMaxGroup, " query heads per KV head, got ", group);
  }
  if (block_size != kSparseBlock) {
    return c10::str("blocks of ", kSparseBlock, " tokens, got ", block_size);
  }
  if (!(scale > 0)) return c10::str("a positive scale, got ", scale);
  return {};
}

}  // namespace

bool block_sparse_kernels_run(const at::Tensor& q, const at::Tensor& k, int64_t block_size,
                              double scale) {
  return q.is_cuda() && kernels_run("block_sparse_attention", lacking(q, k, block_size, scale));
}

std::tuple<at::Tensor, at::Tensor> block_sparse_forward_cuda(
    const at::Tensor& q_any, const at::Tensor& k_any, const at::Tensor& v_any,
    const at::Tensor& blocks_any, const Documents& q_docs, const Documents& k_docs, double scale) {
  const c10::cuda::CUDAGuard guard(q_any.device());
  const at::Tensor q = aligned(q_any), k = aligned(k_any), v = aligned(v_any);
  const at::Tensor blocks = blocks_any.contiguous();
  const BlockSparseShape shape = shape_of(q, k, blocks, q_docs, k_docs, scale);
  at::Tensor o = at::empty_like(q);
  at::Tensor lse = at::empty({q.size(1), q.size(0)}, q.options().dtype(at::kFloat));
  check_launch(launch_block_sparse_forward(q.const_data_ptr(), k.const_data_ptr(),
                                           v.const_data_ptr(), o.data_ptr(), lse.data_ptr<float>(),
                                           q.size(2), shape, current_stream()));
  return {o, lse};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> block_sparse_backward_cuda(
    const at::Tensor& d_o, const at::Tensor& q_any, const at::Tensor& k_any,
    const at::Tensor& v_any, const at::Tensor& o_any, const at::Tensor& lse,
    const at::Tensor& blocks_any, const Documents& q_docs, const Documents& k_docs, double scale) {
  const c10::cuda::CUDAGuard guard(q_any.device());
  const at::Tensor q = aligned(q_any), k = aligned(k_any), v = aligned(v_any);
  const at::Tensor g = aligned(d_o), o = aligned(o_any), blocks = blocks_any.contiguous();
  const BlockSparseShape shape = shape_of(q, k, blocks, q_docs, k_docs, scale);
  const int64_t HS = q.size(2);
  const at::TensorOptions wide = q.options().dtype(at::kFloat);
  const at::Tensor stats = at::empty({q.size(0), q.size(1), 2}, wide);
  check_launch(launch_block_sparse_stats(o.const_data_ptr(), g.const_data_ptr(),
                                         lse.const_data_ptr<float>(), stats.data_ptr<float>(), HS,
                                         shape, current_stream()));
  at::Tensor dq = at::empty_like(q), dk = at::empty_like(k), dv = at::empty_like(v);
  check_launch(launch_block_sparse_dq(q.const_data_ptr(), k.const_data_ptr(), v.const_data_ptr(),
                                      g.const_data_ptr(), stats.const_data_ptr<float>(),
                                      dq.data_ptr(), HS, shape, current_stream()));
  const Columns columns(shape, blocks);
  check_launch(launch_list_columns(columns.lists, shape, current_stream()));
  const at::Tensor partials = at::empty({columns.lists.max_shared, 2, kSparseBlock, HS}, wide);
  check_launch(launch_block_sparse_dk_dv(q.const_data_ptr(), k.const_data_ptr(), v.const_data_ptr(),
                                         g.const_data_ptr(), stats.const_data_ptr<float>(),
                                         columns.lists, partials.data_ptr<float>(), dk.data_ptr(),
                                         dv.data_ptr(), HS, shape, current_stream()));
  return {dq, dk, dv};
}

#else

bool block_sparse_kernels_run(const at::Tensor&, const at::Tensor&, int64_t, double) {
  return false;
}
std::tuple<at::Tensor, at::Tensor> block_sparse_forward_cuda(const at::Tensor&, const at::Tensor&,
                                                             const at::Tensor&, const at::Tensor&,
                                                             const Documents&, const Documents&,
                                                             double) {
  TORCH_CHECK(false, "block_sparse_attention: this build has no CUDA");
}
std::tuple<at::Tensor, at::Tensor, at::Tensor> block_sparse_backward_cuda(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
    const at::Tensor&, const at::Tensor&, const Documents&, const Documents&, double) {
  TORCH_CHECK(false, "block_sparse_attention: this build has no CUDA");
}

#endif

}  // namespace sala
