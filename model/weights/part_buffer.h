// Memory for the weights of one part after another, for whoever goes through a whole model.
#pragma once

#include "model/weights/layout.h"

namespace sala {

// On a host fresh pages cost several times what writing them costs, so they are kept.
class PartBuffer {
 public:
  explicit PartBuffer(at::Device device) : device_(device) {}

  // Zero-filled; good until the next call.
  Weights weights(const LayoutPtr& layout, at::ScalarType dtype) {
    const auto num_bytes = layout->num_elements * static_cast<int64_t>(at::elementSize(dtype));
    if (!bytes_.defined() || bytes_.numel() < num_bytes) {
      bytes_ = at::empty({num_bytes}, at::TensorOptions().dtype(at::kByte).device(device_));
    }
    return {layout, bytes_.narrow(0, 0, num_bytes).zero_().view(dtype)};
  }
  // With the values of `from`, which travel between devices in their own type.
  Weights copy_of(const Weights& from, at::ScalarType dtype) {
    const Weights copy = weights(from.layout_pointer(), dtype);
    copy.flat.copy_(from.flat.to(device_));
    return copy;
  }

 private:
  at::Device device_;
  at::Tensor bytes_;
};

}  // namespace sala
