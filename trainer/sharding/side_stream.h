// Work beside the current stream of a device. On the CPU, where a call's work is done when it
// returns, streams and marks are nothing.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <functional>
#include <optional>

namespace sala {

// A point in the queue of a stream, for other streams to wait for.
class Mark {
 public:
  explicit Mark(at::Device device);
  void record();      // at the end of the current stream's queue
  void wait() const;  // the current stream goes on after the last record(); free before the first
  void wait_on_host() const;  // the same, the caller's thread: for what leaves the device
 private:
  at::Device device_;
  mutable std::optional<c10::Event> event_;
};

class SideStream {
 public:
  explicit SideStream(at::Device device);  // of high priority: what it carries is waited for
  // Calls `work` with this as the current stream. It waits for nothing by itself.
  void run(const std::function<void()>& work) const;
  // The same, after everything that is queued on the current stream by now.
  void run_after_current(const std::function<void()>& work) const;

 private:
  at::Device device_;
  std::optional<c10::Stream> stream_;
};

}  // namespace sala
