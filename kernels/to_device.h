// Small arrays of the host that a step needs on the device.
#pragma once

#include <ATen/ATen.h>

namespace sala {

// `host` on `device`, by way of pinned memory for a GPU: the copy is queued behind what runs there,
// and the host waits for neither.
inline at::Tensor queue_to(const at::Tensor& host, at::Device device) {
  if (device.is_cpu()) return host;
  return host.pin_memory().to(device, /*non_blocking=*/true);
}

}  // namespace sala
