// Marks in the order of a step: a device event each, or a time.
#include "trainer/step_clock.h"

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <chrono>
#include <vector>

namespace sala {

using SteadyTime = std::chrono::steady_clock::time_point;

struct StepClock::Impl {
  struct Mark {
    Phase phase;  // that begins here
    SteadyTime time;
  };

  explicit Impl(c10::Device device) : device(device) {}

  void mark(Phase phase) {
    marks.push_back({phase, std::chrono::steady_clock::now()});
    if (!device.is_cuda()) return;
    if (events.size() < marks.size()) {
      events.emplace_back(device.type(), c10::EventFlag::BACKEND_DEFAULT);
    }
    const c10::impl::VirtualGuardImpl guard(device.type());
    events[marks.size() - 1].record(guard.getStream(device));
  }

  double seconds(size_t from) const {
    if (!device.is_cuda()) {
      return std::chrono::duration<double>(marks[from + 1].time - marks[from].time).count();
    }
    return events[from].elapsedTime(events[from + 1]) * 1e-3;
  }

  c10::Device device;
  std::vector<Mark> marks;
  std::vector<c10::Event> events;  // of a GPU, made once
};

StepClock::StepClock(c10::Device device) : impl_(std::make_unique<Impl>(device)) {}
StepClock::~StepClock() = default;

void StepClock::enter(Phase phase) {
  phase_ = phase;
  impl_->mark(phase);
}

void StepClock::enter_keeping(Phase phase) {
  if (!impl_->marks.empty()) impl_->mark(phase);  // outside of steps nothing is counted
}

PhaseSeconds StepClock::read() {
  PhaseSeconds seconds{};
  if (impl_->marks.empty()) return seconds;
  impl_->mark(phase_);
  auto& marks = impl_->marks;
  if (impl_->device.is_cuda()) impl_->events[marks.size() - 1].synchronize();
  for (size_t i = 0; i + 1 < marks.size(); ++i) {
    seconds[static_cast<size_t>(marks[i].phase)] += impl_->seconds(i);
  }
  marks.clear();
  return seconds;
}

}  // namespace sala
