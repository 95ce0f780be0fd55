// One table of tolerances for every comparison between an op and its twin. A comparison passes when
// each element satisfies |a - b| <= atol + rtol * |b| and the whole satisfies
// ||a - b|| <= relative_norm * ||b||. Both are needed: the first sees one wrong element, the second
// a small error everywhere.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace sala::test {

struct Tolerance {
  double rtol;
  double atol;  // for values of order one; scaled by the largest |b| above one
  double relative_norm;
};

inline Tolerance tolerance(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return {1e-10, 1e-11, 1e-11};
    case at::kFloat:
      return {1e-4, 2e-5, 1e-5};
    case at::kBFloat16:
      return {3e-2, 3e-2, 1e-2};
    default:
      TORCH_CHECK(false, "tolerance: expected double, float or bfloat16, got ", dtype);
  }
}

// Compares in double on the CPU. The dtype of the tolerance is the coarser of the two unless given.
inline ::testing::AssertionResult close(const at::Tensor& a, const at::Tensor& b,
                                        const Tolerance& limit) {
  if (!a.defined() || !b.defined()) {
    if (a.defined() == b.defined()) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << "one of the two tensors is undefined";
  }
  if (a.sizes() != b.sizes()) {
    return ::testing::AssertionFailure() << "sizes " << a.sizes() << " and " << b.sizes();
  }
  if (a.numel() == 0) return ::testing::AssertionSuccess();
  const at::Tensor x = a.detach().to(at::kCPU, at::kDouble);
  const at::Tensor y = b.detach().to(at::kCPU, at::kDouble);
  if (!x.isfinite().all().item<bool>() || !y.isfinite().all().item<bool>()) {
    return ::testing::AssertionFailure() << "a value is not finite";
  }
  const at::Tensor diff = (x - y).abs();
  const double largest = y.abs().max().item<double>();
  const double atol = limit.atol * std::max(1.0, largest);
  const double excess = (diff - (atol + limit.rtol * y.abs())).max().item<double>();
  const double norm = y.norm().item<double>();
  const double error = diff.norm().item<double>();
  if (excess <= 0 && error <= limit.relative_norm * norm + limit.atol) {
    return ::testing::AssertionSuccess();
  }
  return ::testing::AssertionFailure()
         << "largest difference " << diff.max().item<double>() << " (largest value " << largest
         << "), relative norm of the difference " << error / std::max(norm, 1e-300) << ", limit "
         << limit.relative_norm;
}

inline ::testing::AssertionResult close(const at::Tensor& a, const at::Tensor& b) {
  const auto rank = [](const at::Tensor& t) {
    if (!t.defined() || t.scalar_type() == at::kDouble) return 0;
    return t.scalar_type() == at::kFloat ? 1 : 2;
  };
  constexpr at::ScalarType kByRank[] = {at::kDouble, at::kFloat, at::kBFloat16};
  return close(a, b, tolerance(kByRank[std::max(rank(a), rank(b))]));
}

inline ::testing::AssertionResult bit_equal(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type() && at::equal(a, b)) {
    return ::testing::AssertionSuccess();
  }
  return ::testing::AssertionFailure() << "the tensors differ";
}

}  // namespace sala::test
