// Snapshots of tensors on a GPU: the bits arrive, at the speed of the bus, while the run goes on.
// Skipped without a GPU.
#include "trainer/checkpoint/staging.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>

#include "trainer/checkpoint/snapshot.h"
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
  const double seconds = seconds_of([&] {
    extent = staging.add(floats);
    synchronize(floats.device());
  });
  bf16 = staging.add(at::ones({64}, at::device(at::kCUDA).dtype(at::kBFloat16)));
  synchronize(floats.device());
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

// The copies go on while the next step computes; whoever waits for copied() may then change what
// was handed over, and memory that was let go of is not taken by others too early.
TEST(StagingGpu, ASnapshotIsOfTheMomentItWasTaken) {
  if (num_gpus() < 1) GTEST_SKIP() << "no GPU";
  configure_device_memory();
  const at::Device device(at::kCUDA, 0);
  Layout layout;
  layout.name = "part";
  layout.add("w", {(int64_t{1} << 27) + 3}, /*decay=*/false, Init::kNormal);
  const auto fresh = [&](int64_t add) {
    return at::arange(layout.num_elements, at::device(device).dtype(at::kInt)).add_(add);
  };
  const at::Tensor changed = fresh(0).view(at::kFloat);
  at::Tensor dropped = fresh(7).view(at::kFloat);
  const at::Tensor expected[] = {changed.cpu(), dropped.cpu()};
  Staging staging(/*page_locked=*/true);
  staging.take(staging.make_blocks(staging.num_lacking(2 * layout.num_elements)));
  synchronize(device);
  const SideStream side(device);
  Snapshot snapshot(0, 1, device, staging, side);
  const double queued = seconds_of([&] {
    snapshot.tensor("part", "changed", layout, changed);
    snapshot.tensor("part", "dropped", layout, dropped);
  });
  dropped.reset();
  const at::Tensor other = at::zeros_like(changed);  // wants just such memory
  snapshot.copied()->wait();
  changed.zero_();
  const double whole = queued + seconds_of([&] { snapshot.finish_copies(); });
  snapshot.check();
  for (size_t i = 0; i < 2; ++i) {
    const Staging::Extent& extent = snapshot.tensors()[i].values;
    for (int64_t at = 0; at < extent.count;) {
      const auto view = staging.view(extent, at, extent.count);
      ASSERT_EQ(
          std::memcmp(view.data(), expected[i].const_data_ptr<float>() + at, view.size_bytes()), 0)
          << i << " at " << at;
      at += static_cast<int64_t>(view.size());
    }
  }
  std::printf("snapshot of 1 GiB: queued in %.1f ms, copied after %.1f ms\n", 1e3 * queued,
              1e3 * whole);
}

}  // namespace
}  // namespace sala
