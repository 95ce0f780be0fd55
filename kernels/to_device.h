// Small arrays of the host that a step needs on the device.
#pragma once

#include <ATen/ATen.h>

#include <cstring>

namespace sala {

// `host` on `device`, by way of pinned memory for a GPU: the copy is queued behind what runs there,
// and the host waits for neither. One thread copies: LibTorch's own copy into pinned memory wakes
// all its threads from 32K elements on, which have slept since the last step (40 ms on 32 cores).
inline at::Tensor queue_to(const at::Tensor& host, at::Device device) {
  if (device.is_cpu()) return host;
  const at::Tensor from = host.contiguous();
  const at::Tensor pinned = at::empty(from.sizes(), from.options().pinned_memory(true));
  std::memcpy(pinned.mutable_data_ptr(), from.const_data_ptr(), from.nbytes());
  return pinned.to(device, /*non_blocking=*/true);
}

}  // namespace sala
