// Whole chunks go by our kernel (columns.cu), everything else by LibTorch's copy.
#include "kernels/columns.h"

#include <optional>

#include "kernels/check.h"
#include "kernels/cuda_doors.h"
#include "kernels/rows/columns_launch.h"

namespace sala {
namespace {

#ifdef SALA_CUDA
constexpr int64_t kChunkBytes = 16;
constexpr int64_t kMostChunks = int64_t{1} << 31;

// Of tensors of the same sizes with at least one element; undefined where not all of it is whole
// chunks.
std::optional<RowsCopy> in_chunks(const at::Tensor& to, const at::Tensor& from) {
  const auto bytes = [&](int64_t elements) {
    return elements * static_cast<int64_t>(from.element_size());
  };
  const int64_t rows = from.size(0), width = bytes(from.numel() / rows);
  const int64_t from_stride = bytes(from.stride(0)), to_stride = bytes(to.stride(0));
  const auto at = reinterpret_cast<uintptr_t>(from.const_data_ptr()) |
                  reinterpret_cast<uintptr_t>(to.data_ptr());
  if ((static_cast<int64_t>(at) | width | from_stride | to_stride) % kChunkBytes != 0) return {};
  if (rows * width / kChunkBytes > kMostChunks) return {};
  return RowsCopy{from.const_data_ptr(),     to.data_ptr(),          rows, width / kChunkBytes,
                  from_stride / kChunkBytes, to_stride / kChunkBytes};
}
#endif

}  // namespace

at::Tensor dense_columns(const at::Tensor& x) {
  if (x.is_contiguous()) return x;
  const at::Tensor dense = at::empty(x.sizes(), x.options());
  copy_columns(dense, x);
  return dense;
}

void copy_columns(const at::Tensor& to, const at::Tensor& from) {
  check_columns(from, -1, "copy_columns", "from");
  check_same_columns(to, from, "copy_columns", "to");
#ifdef SALA_CUDA
  if (from.is_cuda() && from.numel() > 0) {
    if (const auto copy = in_chunks(to, from)) {
      const c10::cuda::CUDAGuard guard(from.device());
      check_launch(copy_rows_cuda(*copy, current_stream()));
      return;
    }
  }
#endif
  at::Tensor(to).copy_(from);
}

}  // namespace sala
