// The only file that asks LibTorch's profiler.
#include "trainer/journal/profiler.h"

#include <fmt/format.h>
#include <kineto/ActivityType.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "trainer/ranks/device_info.h"

namespace sala {
namespace {

namespace kineto = torch::autograd::profiler;
using torch::profiler::impl::ActivityType;
using torch::profiler::impl::ProfilerConfig;
using torch::profiler::impl::ProfilerState;

constexpr int64_t kWarmUp = 3;
constexpr size_t kMostKernels = 12;  // in the table

std::set<ActivityType> activities(at::Device device) {
  std::set<ActivityType> kinds{ActivityType::CPU};
  if (device.is_cuda()) kinds.insert(ActivityType::CUDA);
  return kinds;
}

struct Time {
  double milliseconds = 0;
  int64_t calls = 0;
  void add(const kineto::KinetoEvent& event) {
    milliseconds += 1e-6 * static_cast<double>(event.durationNs());
    ++calls;
  }
};
using Times = std::map<std::string, Time>;

// Ranges and, on a GPU, kernels by name. A range's time on a GPU is from its first kernel's start
// to its last one's end.
std::pair<Times, Times> times_of(const std::vector<kineto::KinetoEvent>& events, bool on_gpu) {
  Times ranges, kernels;
  for (const kineto::KinetoEvent& event : events) {
    const auto kind = static_cast<libkineto::ActivityType>(event.activityType());
    const auto range = on_gpu ? libkineto::ActivityType::GPU_USER_ANNOTATION
                              : libkineto::ActivityType::USER_ANNOTATION;
    if (kind == range) ranges[event.name()].add(event);
    const bool is_kernel = on_gpu ? kind == libkineto::ActivityType::CONCURRENT_KERNEL
                                  : kind == libkineto::ActivityType::CPU_OP;
    if (is_kernel) kernels[event.name()].add(event);
  }
  return {ranges, kernels};
}

std::string table(const std::string& head, const Times& times, double steps, size_t most) {
  std::vector<std::pair<std::string, Time>> rows(times.begin(), times.end());
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) {
    return a.second.milliseconds > b.second.milliseconds;
  });
  std::string text = fmt::format("{:<60} {:>12} {:>10}", head, "ms a step", "calls");
  for (size_t i = 0; i < std::min(most, rows.size()); ++i) {
    text += fmt::format("\n{:<60} {:>12.2f} {:>10.1f}", rows[i].first.substr(0, 60),
                        rows[i].second.milliseconds / steps,
                        static_cast<double>(rows[i].second.calls) / steps);
  }
  return text;
}

}  // namespace

Profiler::Profiler(std::string folder, int rank, at::Device device, int64_t num_steps)
    : folder_(std::move(folder)), rank_(rank), device_(device), num_steps_(num_steps) {}

Profiler::~Profiler() { forget(); }

void Profiler::begin_stage(const std::string& name, int64_t num_left) {
  forget();
  stage_ = name;
  step_ = 0;
  count_ = std::min(num_steps_, num_left);
  first_ = std::min(kWarmUp, num_left - count_);
}

void Profiler::before_step() {
  if (count_ == 0 || step_ != first_) return;
  synchronize(device_);
  const ProfilerConfig config(ProfilerState::KINETO);
  kineto::prepareProfiler(config, activities(device_));
  kineto::enableProfiler(config, activities(device_));
  records_ = true;
}

std::string Profiler::after_step(bool something_else_follows) {
  ++step_;
  const bool last = step_ == first_ + count_ || something_else_follows;
  return records_ && last ? finish() : "";
}

void Profiler::forget() {
  if (!std::exchange(records_, false)) return;
  try {
    kineto::disableProfiler();
  } catch (const std::exception&) {  // perhaps on the way out of another error
  }
}

std::string Profiler::finish() {
  synchronize(device_);
  records_ = false;
  const auto result = kineto::disableProfiler();
  const std::string path = fmt::format("{}/profile/{}-rank{}.json", folder_, stage_, rank_);
  std::string text = "profile: " + path;
  try {
    std::filesystem::create_directories(folder_ + "/profile");
    result->save(path);
  } catch (const std::exception& error) {
    text = fmt::format("profile: cannot write {}: {}", path, error.what());
  }
  const auto [ranges, kernels] = times_of(result->events(), device_.is_cuda());
  const auto steps = static_cast<double>(step_ - first_);
  text += "\n" + table("range (ranges nest)", ranges, steps, ranges.size());
  return text + "\n" + table(device_.is_cuda() ? "kernel" : "op", kernels, steps, kMostKernels);
}

}  // namespace sala
