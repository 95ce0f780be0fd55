// The only place that asks CUDA about the device itself.
#include "trainer/ranks/device_info.h"

#include <ATen/Parallel.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>

#ifdef SALA_CUDA
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CachingHostAllocator.h>
#include <c10/core/AllocatorConfig.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#endif

namespace sala {

std::string device_name(at::Device device) {
#ifdef SALA_CUDA
  if (device.is_cuda()) return at::cuda::getDeviceProperties(device.index())->name;
#endif
  (void)device;
  return "CPU, " + std::to_string(at::get_num_threads()) + " threads";
}

double device_peak_flops(at::Device device) {
  if (!device.is_cuda()) return 0;
  const std::string name = device_name(device);
  auto is = [&](const char* part) { return name.find(part) != std::string::npos; };
  if (is("H100") || is("H200") || is("H800")) return 989e12;
  if (is("A100") || is("A800")) return 312e12;
  if (is("B200")) return 2250e12;
  return 0;
}

double device_memory_bytes(at::Device device) {
#ifdef SALA_CUDA
  if (device.is_cuda()) {
    return static_cast<double>(at::cuda::getDeviceProperties(device.index())->totalGlobalMem);
  }
#endif
  (void)device;
  return static_cast<double>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
}

double peak_memory_bytes(at::Device device) {
#ifdef SALA_CUDA
  if (device.is_cuda()) {
    const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device.index());
    return static_cast<double>(stats.reserved_bytes[0].peak);
  }
#endif
  (void)device;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * 1024.0;
}

void forget_peak_memory(at::Device device) {
#ifdef SALA_CUDA
  if (device.is_cuda()) {
    if (!c10::cuda::CUDACachingAllocator::get()->initialized()) return;  // nothing was ever taken
    synchronize(device);
    c10::cuda::CUDACachingAllocator::emptyCache();
    c10::cuda::CUDACachingAllocator::resetPeakStats(device.index());
    return;
  }
#endif
  (void)device;
  std::ofstream("/proc/self/clear_refs") << "5";  // Linux: the resident set's high-water mark
}

void limit_device_memory(at::Device device, double bytes) {
#ifdef SALA_CUDA
  if (device.is_cuda()) {
    const double share = std::min(bytes / device_memory_bytes(device), 1.0);
    c10::cuda::CUDACachingAllocator::setMemoryFraction(share, device.index());
  }
#endif
  (void)device, (void)bytes;
}

void configure_device_memory() {
#ifdef SALA_CUDA
  if (std::getenv("PYTORCH_ALLOC_CONF") || std::getenv("PYTORCH_CUDA_ALLOC_CONF")) return;
  // Host memory for snapshots: eight threads fault pages in, then they are registered. CUDA's own
  // call for page-locked memory faults them one by one, and holds all calls to the driver up.
  c10::CachingAllocator::setAllocatorSettings(
      "pinned_use_cuda_host_register:True,pinned_num_register_threads:8");
#endif
}

double available_host_bytes(const std::string& root) {
  // The number behind a line's first word.
  const auto value_of = [&](const std::string& path, const std::string& name) {
    std::ifstream file(root + path);
    for (std::string word; file >> word;) {
      double value = 0;
      if (word == name && file >> value) return value;
    }
    return 0.0;
  };
  double available = 1024 * value_of("/proc/meminfo", "MemAvailable:");
  const std::string group = "/sys/fs/cgroup/memory.";
  double limit = 0, used = 0;  // "max" where there is none: not a number
  if (std::ifstream(root + group + "max") >> limit &&
      std::ifstream(root + group + "current") >> used) {
    for (const char* cache : {"active_file", "inactive_file"}) {  // given back when asked for
      used -= value_of(group + "stat", cache);
    }
    available = std::min(available, std::max(1.0, limit - used));
  }
  return available;
}

void free_cached_host_memory() {
#ifdef SALA_CUDA
  if (at::hasCUDA()) at::getHostAllocator(at::kCUDA)->empty_cache();
#endif
}

void synchronize(at::Device device) {
#ifdef SALA_CUDA
  if (device.is_cuda()) c10::cuda::device_synchronize();
#endif
  (void)device;
}

bool roomy_gpus(bool cuda) {
  constexpr double kSmallBytes = 40e9;
  return cuda && (num_gpus() < 1 || device_memory_bytes(at::Device(at::kCUDA, 0)) >= kSmallBytes);
}

int num_gpus() {
#ifdef SALA_CUDA
  return c10::cuda::device_count();
#else
  return -1;
#endif
}

}  // namespace sala
