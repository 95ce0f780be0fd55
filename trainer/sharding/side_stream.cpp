// Streams and events of whatever device, by c10's virtual interface.
#include "trainer/sharding/side_stream.h"

#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace sala {
namespace {

c10::Stream current_stream(at::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
}

}  // namespace

Mark::Mark(at::Device device) : device_(device) {
  if (!device.is_cpu()) event_.emplace(device.type());
}

void Mark::record() {
  if (event_) event_->record(current_stream(device_));
}

void Mark::wait() const {
  if (event_) event_->block(current_stream(device_));
}

void Mark::wait_on_host() const {
  if (event_) event_->synchronize();
}

SideStream::SideStream(at::Device device) : device_(device) {
  if (device.is_cpu()) return;
  stream_ = c10::impl::VirtualGuardImpl(device.type())
                .getStreamFromGlobalPool(device, /*isHighPriority=*/true);
}

void SideStream::run(const std::function<void()>& work) const {
  if (!stream_) return work();
  const c10::StreamGuard guard(*stream_);
  work();
}

void SideStream::run_after_current(const std::function<void()>& work) const {
  Mark now(device_);
  now.record();
  run([&] {
    now.wait();
    work();
  });
}

}  // namespace sala
