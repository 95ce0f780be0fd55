// What the tests of tensors beyond 2^32 elements share: sizes, room on the device, and the
// comparison of an op's last rows with a call on those rows alone, which is small in every index.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "tests/kernels/tolerance.h"

#ifdef SALA_CUDA
#include <c10/cuda/CUDACachingAllocator.h>
#include <cuda_runtime_api.h>
#endif

namespace sala::test {

constexpr int64_t kManyTokens = (int64_t{1} << 20) + (int64_t{1} << 16) + 77;
constexpr int64_t kManyHeads = 32, kWideHead = 128;
static_assert(kManyTokens * kManyHeads * kWideHead > int64_t{1} << 32);

class LargeTensors : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
    at::manual_seed(3);
  }
  void TearDown() override { release(); }

  // Whether the device has so many free GiB.
  static bool has_room(double gib) {
    release();
    size_t free = 0;
#ifdef SALA_CUDA
    size_t total = 0;
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) return false;
#endif
    return static_cast<double>(free) >= gib * (1 << 30);
  }
  static void release() {
#ifdef SALA_CUDA
    if (at::hasCUDA()) c10::cuda::CUDACachingAllocator::emptyCache();
#endif
  }
  static at::TensorOptions bf16() { return at::TensorOptions(at::kCUDA).dtype(at::kBFloat16); }
  static at::Tensor random(at::IntArrayRef sizes) { return at::randn(sizes, bf16()); }
};

// A copy: what it was taken from can go.
inline at::Tensor last_rows(const at::Tensor& x, int64_t n) {
  return x.slice(0, x.size(0) - n).clone(at::MemoryFormat::Contiguous);
}

// `op` takes and gives tensors of as many rows, which do not look at each other: its last n rows
// are the bits of a call on the last n rows of `inputs`. Results of another size (sums over rows,
// to which only the last n rows contribute) agree.
inline void expect_last_rows(
    const std::vector<at::Tensor>& inputs, int64_t n,
    const std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)>& op) {
  const int64_t rows = inputs[0].size(0);
  std::vector<at::Tensor> tails, got;
  for (const at::Tensor& x : inputs) tails.push_back(last_rows(x, n));
  for (const at::Tensor& x : op(inputs)) got.push_back(x.size(0) == rows ? last_rows(x, n) : x);
  const std::vector<at::Tensor> expected = op(tails);
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    if (expected[i].size(0) == n) {
      EXPECT_TRUE(bit_equal(got[i], expected[i])) << "result " << i;
    } else {
      EXPECT_TRUE(close(got[i], expected[i])) << "result " << i;
    }
  }
}

}  // namespace sala::test
