// What is known of the device: peak arithmetic for MFU, memory in use and in all.
#pragma once

#include <ATen/ATen.h>

#include <string>

namespace sala {

std::string device_name(at::Device device);  // "NVIDIA H100 80GB HBM3", "CPU, 2 threads"
// Dense bf16 datasheet peak, FLOP/s; 0 where we know none (then MFU is not printed).
double device_peak_flops(at::Device device);
double device_memory_bytes(at::Device device);  // in all; RAM of the node for a CPU
// The most this process has held since forget_peak_memory(), or since it began: what LibTorch's
// allocator took from a GPU; the resident set on a CPU.
double peak_memory_bytes(at::Device device);
// Gives memory that is free but kept back to the device, and begins the peak anew.
void forget_peak_memory(at::Device device);
// LibTorch's allocator takes no more than this of a GPU, as if it were a smaller one; nothing on a
// CPU. More than the device has is all of it.
void limit_device_memory(at::Device device, double bytes);
// How LibTorch's allocators work, where the environment (PYTORCH_ALLOC_CONF) does not say: before
// the first use of a GPU.
void configure_device_memory();
// RAM of this node that a process may still take, its control group's limit included; 0 = unknown.
// `root`: where /proc and /sys are.
double available_host_bytes(const std::string& root = "");
// LibTorch keeps page-locked memory that it has no use for any more: back to the system with it.
void free_cached_host_memory();
void synchronize(at::Device device);
// Whether the GPUs that are computed on, or planned for where there are none, are large ones.
bool roomy_gpus(bool cuda);
// Names every GPU; -1 without CUDA support in this build.
int num_gpus();

}  // namespace sala
