// What the attention tests share: places to run (device and dtype), random tensors, document
// layouts with boundaries inside tiles, and directional derivatives.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/documents.h"
#include "tests/kernels/tolerance.h"

namespace sala::test {

struct Place {
  at::DeviceType device;
  at::ScalarType dtype;
};

inline std::string place_name(const ::testing::TestParamInfo<Place>& info) {
  return std::string(info.param.device == at::kCUDA ? "Cuda" : "Cpu") +
         at::toString(info.param.dtype);
}

inline auto all_places() {
  return ::testing::Values(Place{at::kCPU, at::kDouble}, Place{at::kCPU, at::kFloat},
                           Place{at::kCPU, at::kBFloat16}, Place{at::kCUDA, at::kFloat},
                           Place{at::kCUDA, at::kBFloat16});
}

// Tests of an op in one place; those on CUDA skip where there is none.
class OpInPlace : public ::testing::TestWithParam<Place> {
 protected:
  void SetUp() override {
    at::manual_seed(7);
    if (GetParam().device == at::kCUDA && !at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  }
  at::Device device() const { return at::Device(GetParam().device); }
  // Normal values, representable in the dtype under test.
  at::Tensor random(at::IntArrayRef sizes) const {
    return at::randn(sizes, at::kDouble).to(GetParam().dtype).to(device());
  }
  // The same in the dtype of states and statistics.
  at::Tensor random_wide(at::IntArrayRef sizes) const {
    return at::randn(sizes, at::kDouble)
        .to(GetParam().dtype == at::kDouble ? at::kDouble : at::kFloat)
        .to(device());
  }
};

inline at::Tensor on_cpu(const at::Tensor& x) { return x.defined() ? x.cpu() : x; }
inline at::Tensor exact(const at::Tensor& x) { return x.defined() ? x.cpu().to(at::kDouble) : x; }

struct DocumentCase {
  std::vector<int64_t> starts;
  int64_t num_tokens;
  Documents on(at::Device device) const {
    return Documents::from_starts(starts, num_tokens, device);
  }
};

// What is not finite must not leave the document (or row) that it is in: rows of `after` outside
// [begin, end) are the bits of `before`, inside some are not finite.
inline void expect_stays_between(const at::Tensor& before, const at::Tensor& after, int64_t begin,
                                 int64_t end) {
  EXPECT_TRUE(bit_equal(after.slice(0, 0, begin), before.slice(0, 0, begin)));
  EXPECT_TRUE(bit_equal(after.slice(0, end), before.slice(0, end)));
  EXPECT_TRUE(before.isfinite().all().item<bool>());
  EXPECT_FALSE(after.isfinite().all().item<bool>());
}

// Block lists with each query's own block and a random half of the earlier ones, at most K.
inline at::Tensor random_lists(const Documents& q_docs, const Documents& k_docs, int64_t NKV,
                               int64_t K, int64_t block_size) {
  std::mt19937 random(17);
  at::Tensor blocks = at::full({NKV, q_docs.num_tokens(), K}, -1, at::kInt);
  int* to = blocks.data_ptr<int>();
  for (int64_t n = 0; n < NKV; ++n) {
    for (int64_t d = 0; d < q_docs.count(); ++d) {
      for (int64_t i = 0; i < q_docs.length(d); ++i, to += K) {
        const int64_t own = (k_docs.length(d) - q_docs.length(d) + i) / block_size;
        std::vector<int> list;
        for (int64_t b = 0; b < own && static_cast<int64_t>(list.size()) < K - 1; ++b) {
          if (random() % 2) list.push_back(static_cast<int>(b));
        }
        list.push_back(static_cast<int>(own));
        std::copy(list.begin(), list.end(), to);
      }
    }
  }
  return blocks;
}

// d f / d x along `direction` by central differences, fp64.
inline double slope_along(const std::function<double(const at::Tensor&)>& f, const at::Tensor& x,
                          const at::Tensor& direction) {
  const double step = 1e-5;
  return (f(x + step * direction) - f(x - step * direction)) / (2 * step);
}

// The gradient `dx` that an op claims for x agrees with the finite difference along a random
// direction.
inline void expect_gradient(const std::function<double(const at::Tensor&)>& f, const at::Tensor& x,
                            const at::Tensor& dx, const char* name) {
  const at::Tensor direction = at::randn(x.sizes(), at::kDouble);
  const double expected = slope_along(f, x, direction);
  EXPECT_NEAR((dx * direction).sum().item<double>(), expected, 1e-6 * (1 + std::abs(expected)))
      << name;
}

}  // namespace sala::test
