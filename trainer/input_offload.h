// Inputs of units in host memory, between their forward and their backward (recompute: offload).
// With full recomputing they are most of what a long row keeps: 2 LC bytes a token in bf16, 50 GB
// at 512K tokens of a 1.7B model. Copies travel on a stream of their own beside the unit at work;
// the host never waits. On the device lie the input of the unit at work and that of the next.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "trainer/sharding/side_stream.h"

namespace sala {

class InputOffload {
 public:
  // The memory is made when it is first needed, page-locked where inputs come from a GPU. With this
  // object it goes back to LibTorch, which keeps it for others who want page-locked memory.
  explicit InputOffload(at::Device device);

  // A forward pass. Queues the copy of unit `u`'s input x (contiguous; undefined: nothing to do),
  // which must not be written to; x may be let go of once `u` is through.
  void put(size_t u, const at::Tensor& x);
  // A backward pass: starts the copy back, of what was put last under `u`; then take() hands it
  // out, undefined where nothing was put. Each once.
  void hint(size_t u);
  at::Tensor take(size_t u);
  int64_t num_host_bytes() const;  // held

 private:
  struct Slot {
    std::vector<at::Tensor> blocks;  // bytes in host memory
    at::Tensor like;                 // shape and dtype of what lies there; undefined: nothing
    at::Tensor on_device;            // from hint() to take()
  };
  Slot& slot(size_t u);
  void let_go();  // of what was put last, after its copy

  at::Device device_;
  SideStream side_;
  Mark arrived_;        // of the last copy, either way
  at::Tensor leaving_;  // what was put last
  std::vector<Slot> slots_;
};

}  // namespace sala
