// The GPU is reached through LibTorch's device-independent events and allocator: no CUDA header.
#include "trainer/bench/timer.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "trainer/ranks/device_info.h"

namespace sala {

namespace {

constexpr double kCacheBytes = 256e6;  // more than the caches of any GPU or CPU we know
constexpr int64_t kMostSets = 32;
constexpr int64_t kFewestRepeats = 5;
constexpr int64_t kFewestWarmUps = 3;
constexpr double kBudgetMs = 1000;

// Sets of buffers used in turn: by the time one is used again, the others have pushed it out of the
// caches. Outputs live until their set's next turn, so they rotate too.
class Rotation {
 public:
  Rotation(const std::function<BenchRun()>& prepare, double num_bytes) {
    const double sets = std::ceil(kCacheBytes / std::max(num_bytes, 1.0));
    const auto count = static_cast<size_t>(std::clamp(sets, 1.0, double(kMostSets)));
    outputs_.resize(count);
    while (runs_.size() < count) runs_.push_back(prepare());
  }

  int64_t size() const { return static_cast<int64_t>(runs_.size()); }

  void next() {
    outputs_[turn_].clear();
    outputs_[turn_] = runs_[turn_]();
    turn_ = (turn_ + 1) % runs_.size();
  }

 private:
  std::vector<BenchRun> runs_;
  std::vector<BenchTensors> outputs_;
  size_t turn_ = 0;
};

double wall_ms() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(now).count();
}

std::vector<double> wall_times(Rotation& rotation, int64_t repeats) {
  std::vector<double> times;
  for (int64_t i = 0; i < repeats; ++i) {
    const double start = wall_ms();
    rotation.next();
    times.push_back(wall_ms() - start);
  }
  return times;
}

// Events between calls that follow each other without a break. The GPU first gets a few
// milliseconds of other work, so that the host is ahead of it and launches are not what is timed;
// an op whose launches take longer than its work is still seen as it is.
std::vector<double> event_times(Rotation& rotation, at::Device device, int64_t repeats) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  const c10::Stream stream = guard.getStream(device);
  std::vector<c10::Event> events;
  for (int64_t i = 0; i <= repeats; ++i) {
    events.emplace_back(device.type(), c10::EventFlag::BACKEND_DEFAULT);
  }
  at::Tensor busy = at::empty({int64_t(kCacheBytes)}, at::TensorOptions(device).dtype(at::kByte));
  for (int i = 0; i < 64; ++i) busy.zero_();
  events[0].record(stream);
  for (int64_t i = 0; i < repeats; ++i) {
    rotation.next();
    events[i + 1].record(stream);
  }
  synchronize(device);
  std::vector<double> times;
  for (int64_t i = 0; i < repeats; ++i) times.push_back(events[i].elapsedTime(events[i + 1]));
  return times;
}

// Of one set of inputs and one call on it, with nothing else alive.
double peak_of_one_call(const std::function<BenchRun()>& prepare, at::Device device) {
  if (device.is_cpu()) return 0;
  auto* allocator = c10::getDeviceAllocator(device.type());
  allocator->resetPeakStats(device.index());
  prepare()();
  synchronize(device);
  return static_cast<double>(allocator->getDeviceStats(device.index()).allocated_bytes[0].peak);
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

BenchTime measure_bench(const std::function<BenchRun()>& prepare, double num_bytes,
                        at::Device device, int64_t repeats) {
  BenchTime time;
  time.peak_bytes = peak_of_one_call(prepare, device);
  Rotation rotation(prepare, num_bytes);
  const int64_t warm_ups = std::max(kFewestWarmUps, rotation.size());
  double once = 0, spent = 0;
  for (int64_t i = 0; i < warm_ups && spent < kBudgetMs; ++i) {
    synchronize(device);
    const double start = wall_ms();
    rotation.next();
    synchronize(device);
    once = wall_ms() - start;
    spent += once;
  }
  const auto affordable = static_cast<int64_t>(kBudgetMs / std::max(once, 1e-3));
  time.repeats = std::min(repeats, std::max(kFewestRepeats, affordable));
  time.ms = median(device.is_cpu() ? wall_times(rotation, time.repeats)
                                   : event_times(rotation, device, time.repeats));
  return time;
}

void release_unused_memory(at::Device device) {
  if (!device.is_cpu()) c10::getDeviceAllocator(device.type())->emptyCache();
}

}  // namespace sala
