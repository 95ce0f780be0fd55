// The small hybrid with its parameters on a device, as a stage trains it.
#pragma once

#include "tests/gpu/small_hybrid.h"
#include "trainer/network.h"

namespace sala {

struct SmallNetwork {
  SmallNetwork(at::Device device, at::ScalarType dtype)
      : network(small_hybrid(), options_of(device, dtype), {}) {
    at::Generator generator = at::detail::createCPUGenerator(11);
    for (size_t p = 0; p < network.parameters.num_parts(); ++p) {
      Weights part(network.parameters.layout(p), at::kFloat, at::kCPU);
      set_random(part, generator);
      network.parameters.set_whole(p, part.flat);
    }
  }

  static Parameters::Options options_of(at::Device device, at::ScalarType dtype) {
    Parameters::Options options;
    options.dtype = dtype;
    options.device = device;
    options.trains = true;
    return options;
  }

  Network network;
};

}  // namespace sala
