// One report under a mutex; a change costs tens of nanoseconds.
#include "trainer/ranks/activity.h"

#include <utility>

namespace sala {

Activity& Activity::here() {
  static Activity activity;
  return activity;
}

void Activity::at(const std::string& stage, int64_t step) {
  const std::lock_guard lock(mutex_);
  report_.stage = stage;
  report_.step = step;
  ++report_.count;
}

void Activity::moves() {
  const std::lock_guard lock(mutex_);
  ++report_.count;
}

ActivityReport Activity::report() const {
  const std::lock_guard lock(mutex_);
  ActivityReport report = report_;
  report.seconds = std::chrono::duration<double>(Clock::now() - since_).count();
  return report;
}

Doing::Doing(std::string operation, Kind kind) : before_(std::move(operation)) {
  Activity& activity = Activity::here();
  const std::lock_guard lock(activity.mutex_);
  std::swap(before_, activity.report_.operation);
  waited_before_ = std::exchange(activity.report_.waits_for_ranks, kind == kWait);
  activity.since_ = Activity::Clock::now();
  ++activity.report_.count;
}

Doing::~Doing() {
  Activity& activity = Activity::here();
  const std::lock_guard lock(activity.mutex_);
  activity.report_.operation = std::move(before_);
  activity.report_.waits_for_ranks = waited_before_;
  activity.since_ = Activity::Clock::now();
  ++activity.report_.count;
}

}  // namespace sala
