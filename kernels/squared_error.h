// The error that alignment minimises, with its gradient in the same pass over memory.
#pragma once

#include <ATen/ATen.h>

#include <utility>

namespace sala {

// y, target (T, C). Returns scale * sum (y - target)^2, fp64 on the device, and
// dy = 2 scale (y - target) in y's dtype; differences are taken in fp32 (fp64 for fp64).
std::pair<at::Tensor, at::Tensor> squared_error(const at::Tensor& y, const at::Tensor& target,
                                                double scale);

}  // namespace sala
