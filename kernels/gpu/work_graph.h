// A run of queued GPU work that is captured once and replayed, without the cost of its launches.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <memory>

namespace sala {

class WorkGraph {
 public:
  WorkGraph();
  ~WorkGraph();
  WorkGraph(const WorkGraph&) = delete;
  WorkGraph& operator=(const WorkGraph&) = delete;

  // Calls `work` once, on a stream of its own behind the current one: what it queues is captured,
  // not computed. It must not wait for the device; tensors that it makes keep their memory for as
  // long as this object, and those that it reads and writes must live on. Call the same work once
  // before, so that libraries have set themselves up. CUDA only; what cannot be captured is an
  // error.
  void capture(at::Device device, const std::function<void()>& work);
  bool is_captured() const;
  // Queues the work on the current stream.
  void replay();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sala
