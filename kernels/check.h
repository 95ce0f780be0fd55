// Checks at the tensor door, with one wording for all ops: what was expected, what came.
#pragma once

#include <ATen/ATen.h>

namespace sala {

// Statistics, scores and states are kept in fp32, and in fp64 where the tensors are fp64.
inline at::ScalarType accumulate_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// A dense floating-point tensor of the given rank (any rank when negative).
inline void check_input(const at::Tensor& x, int64_t rank, const char* op, const char* name) {
  TORCH_CHECK(x.defined(), op, ": expected a tensor ", name, ", got an undefined one");
  TORCH_CHECK(at::isFloatingType(x.scalar_type()), op, ": expected floating point ", name, ", got ",
              x.scalar_type());
  TORCH_CHECK(rank < 0 || x.dim() == rank, op, ": expected ", name, " with ", rank,
              " dimensions, got ", x.sizes());
  TORCH_CHECK(x.is_contiguous(), op, ": expected contiguous ", name, ", got strides ", x.strides(),
              " for sizes ", x.sizes());
}

inline void check_shape(const at::Tensor& x, at::IntArrayRef expected, const char* op,
                        const char* name) {
  TORCH_CHECK(x.defined(), op, ": expected a tensor ", name, ", got an undefined one");
  TORCH_CHECK(x.sizes() == expected, op, ": expected ", name, " of sizes ", expected, ", got ",
              x.sizes());
  TORCH_CHECK(x.is_contiguous(), op, ": expected contiguous ", name, ", got strides ", x.strides());
}

// Columns of a wider tensor count as dense: the innermost dimensions of x are contiguous, and only
// the first (tokens) may have a larger stride.
inline bool has_dense_rows(const at::Tensor& x) {
  return x.numel() == 0 || x.select(0, 0).is_contiguous();
}

// As check_input, for a tensor that may be columns.
inline void check_columns(const at::Tensor& x, int64_t rank, const char* op, const char* name) {
  TORCH_CHECK(x.defined(), op, ": expected a tensor ", name, ", got an undefined one");
  TORCH_CHECK(at::isFloatingType(x.scalar_type()), op, ": expected floating point ", name, ", got ",
              x.scalar_type());
  TORCH_CHECK(rank < 0 || x.dim() == rank, op, ": expected ", name, " with ", rank,
              " dimensions, got ", x.sizes());
  TORCH_CHECK(has_dense_rows(x), op, ": expected ", name, " with contiguous rows, got strides ",
              x.strides(), " for sizes ", x.sizes());
}

inline void check_like(const at::Tensor& x, const at::Tensor& like, const char* op,
                       const char* name) {
  TORCH_CHECK(x.device() == like.device(), op, ": expected ", name, " on ", like.device(), ", got ",
              x.device());
  TORCH_CHECK(x.scalar_type() == like.scalar_type(), op, ": expected ", name, " of type ",
              like.scalar_type(), ", got ", x.scalar_type());
}

// Same sizes, type and device.
inline void check_same(const at::Tensor& x, const at::Tensor& like, const char* op,
                       const char* name) {
  check_shape(x, like.sizes(), op, name);
  check_like(x, like, op, name);
}

// Same sizes, type and device; may be columns.
inline void check_same_columns(const at::Tensor& x, const at::Tensor& like, const char* op,
                               const char* name) {
  check_columns(x, like.dim(), op, name);
  TORCH_CHECK(x.sizes() == like.sizes(), op, ": expected ", name, " of sizes ", like.sizes(),
              ", got ", x.sizes());
  check_like(x, like, op, name);
}

// One weight for each channel of x (..., C).
inline void check_weight(const at::Tensor& weight, const at::Tensor& x, const char* op) {
  check_shape(weight, {x.size(-1)}, op, "weight");
  check_like(weight, x, op, "weight");
}

// fp32 or fp64 statistics that belong to `like`.
inline void check_statistic(const at::Tensor& x, at::IntArrayRef expected, const at::Tensor& like,
                            const char* op, const char* name) {
  check_shape(x, expected, op, name);
  TORCH_CHECK(x.scalar_type() == accumulate_type(like) && x.device() == like.device(), op,
              ": expected ", name, " of type ", accumulate_type(like), " on ", like.device(),
              ", got ", x.scalar_type(), " on ", x.device());
}

}  // namespace sala
