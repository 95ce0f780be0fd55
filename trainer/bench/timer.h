// Times of one op: medians over many calls, from the device's own events on a GPU and from the wall
// clock on a CPU.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>

#include "trainer/bench/op.h"

namespace sala {

struct BenchTime {
  double ms = 0;          // median of one call
  int64_t repeats = 0;    // calls measured
  double peak_bytes = 0;  // inputs, outputs and temporaries of one call; 0 = unknown (CPU)
};

// Warm-up, then up to `repeats` calls, fewer where they would take longer than a second in all
// (but five). Inputs whose `num_bytes` could stay in the device's caches are made several times and
// used in turn; the warm-up takes every set once, or a second. A GPU that has too little memory:
// c10::OutOfMemoryError.
BenchTime measure_bench(const std::function<BenchRun()>& prepare, double num_bytes,
                        at::Device device, int64_t repeats);

// Gives unused memory back to the device, so that the next shape finds one piece.
void release_unused_memory(at::Device device);

}  // namespace sala
