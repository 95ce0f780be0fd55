// What is known of the device: peak arithmetic for MFU, memory in use and in all.
#pragma once

#include <ATen/ATen.h>

#include <string>

namespace sala {

std::string device_name(at::Device device);  // "NVIDIA H100 80GB HBM3", "CPU, 2 threads"
// Dense bf16 datasheet peak, FLOP/s; 0 where we know none (then MFU is not printed).
double device_peak_flops(at::Device device);
double device_memory_bytes(at::Device device);  // in all; RAM of the node for a CPU
double peak_memory_bytes(at::Device device);    // most this process has held so far
// RAM of this node that a process may still take, its control group's limit included; 0 = unknown.
double available_host_bytes();
void synchronize(at::Device device);
// Names every GPU; -1 without CUDA support in this build.
int num_gpus();

}  // namespace sala
