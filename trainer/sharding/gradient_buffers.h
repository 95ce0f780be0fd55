// Whole gradients of sharded parts, from the first tensor that backward adds until their sum over
// ranks is on its way: persistent fp32 buffers, as many as are at work or being reduced at once.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <list>
#include <vector>

#include "trainer/sharding/cut.h"
#include "trainer/sharding/pool.h"
#include "trainer/sharding/side_stream.h"

namespace sala {

class GradientBuffers {
 public:
  GradientBuffers(std::vector<Cut> cuts, const Pool& pool, at::TensorOptions options);

  // The part's buffer (cut.padded()), zero-filled on the current stream when it is taken, and the
  // same until give_back(). Where every buffer is taken a temporary one is made.
  at::Tensor take(size_t part);
  // On the stream that used it last.
  void give_back(size_t part);
  void give_back_all();

  int64_t num_bytes() const;

 private:
  struct Buffer {
    at::Tensor flat;
    int64_t size_class = 0;
    bool temporary = false;
    int64_t part = -1;  // -1: free
    int64_t freed = 0;  // when; the longest ago is taken first
    Mark free;
  };
  Buffer& add(int64_t size_class, int64_t num_elements, bool temporary);

  std::vector<Cut> cuts_;
  Pool pool_;
  at::TensorOptions options_;
  std::list<Buffer> buffers_;
  int64_t now_ = 0;
};

}  // namespace sala
