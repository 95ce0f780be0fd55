// Host memory that snapshots are copied to, kept from one checkpoint to the next: blocks of 64 MiB,
// page-locked where they are filled from a GPU (copies at the speed of the bus). They stay: 4 bytes
// for each element that this rank saves.
#pragma once

#include <ATen/ATen.h>

#include <span>
#include <vector>

namespace sala {

class Staging {
 public:
  explicit Staging(bool page_locked) : page_locked_(page_locked) {}

  // Elements that were added together.
  struct Extent {
    int64_t begin = 0, count = 0;
  };

  void clear() { used_ = 0; }  // the memory stays
  // Blocks that are lacking for so many elements, made while this one is in use; for take().
  int64_t num_lacking(int64_t num_elements) const;
  std::vector<at::Tensor> make_blocks(int64_t count) const;
  void take(std::vector<at::Tensor> blocks);
  // Copies `values` (contiguous, floating, any device) as fp32; those of a GPU on the current
  // stream, the host does not wait where the memory is page-locked.
  Extent add(const at::Tensor& values);
  // Up to `most` elements from the extent's element `from` on, as many as lie in one block.
  std::span<const float> view(const Extent& extent, int64_t from, int64_t most) const;
  int64_t num_bytes() const;  // held

 private:
  bool page_locked_;
  int64_t used_ = 0;
  std::vector<at::Tensor> blocks_;  // each kBlockElements, fp32
};

}  // namespace sala
