// Snapshots of tensors on a GPU: the bits arrive, at the speed of the bus. Skipped without a GPU.
#include "trainer/checkpoint/staging.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>

#include "trainer/ranks/device_info.h"

namespace sala {
namespace {

double seconds_of(const std::function<void()>& work) {
  const auto started = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
}

TEST(StagingGpu, TakesTensorsOfAGpuAtTheSpeedOfTheBus) {
  if (num_gpus() < 1) GTEST_SKIP() << "no GPU";
  configure_device_memory();
  constexpr int64_t kElements = (int64_t{1} << 28) + 1001;  // 1 GiB and an odd rest
  const at::Tensor values = at::arange(kElements, at::device(at::kCUDA).dtype(at::kInt));
  const at::Tensor floats = values.view(at::kFloat);
  Staging staging(/*page_locked=*/true);
  const double lock_seconds =
      seconds_of([&] { staging.take(staging.make_blocks(staging.num_lacking(kElements + 64))); });
  synchronize(floats.device());
  Staging::Extent extent, bf16;
  const double seconds = seconds_of([&] { extent = staging.add(floats); });
  bf16 = staging.add(at::ones({64}, at::device(at::kCUDA).dtype(at::kBFloat16)));
  const at::Tensor expected = floats.cpu();
  for (int64_t at = 0; at < kElements;) {
    const auto view = staging.view(extent, at, kElements);
    ASSERT_EQ(std::memcmp(view.data(), expected.const_data_ptr<float>() + at, view.size_bytes()), 0)
        << at;
    at += static_cast<int64_t>(view.size());
  }
  EXPECT_EQ(staging.view(bf16, 0, 64)[63], 1.0f);
  const double gb = 4e-9 * kElements;
  std::printf("page-locking %.1f GB/s, snapshot %.1f GB/s\n", gb / lock_seconds, gb / seconds);
}

}  // namespace
}  // namespace sala
