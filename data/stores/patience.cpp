// Pauses, cut into short sleeps.
#include "data/stores/patience.h"

#include <chrono>
#include <thread>
#include <utility>

#include "data/files/system_advice.h"

namespace sala {
namespace {

Patience& patience() {
  static Patience ours;
  return ours;
}

thread_local std::stop_token stop_of_thread;

bool gives_up() {
  return stop_of_thread.stop_requested() || (patience().gives_up && patience().gives_up());
}

// False when whoever waits is to give up.
bool pause(double seconds) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::milliseconds kStep(50);
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  while (Clock::now() < end) {
    if (gives_up()) return false;
    std::this_thread::sleep_for(kStep);
  }
  return true;
}

void tell(const std::string& error) {
  if (!patience().tell) return;
  std::string text;
  for (const double seconds : patience().pauses) {
    text += (text.empty() ? "" : ", ") + std::to_string(static_cast<int>(seconds));
  }
  patience().tell(error + " (tried again after " + text + " s)");
}

}  // namespace

Patience set_patience(Patience next) { return std::exchange(patience(), std::move(next)); }

void end_patience_with(std::stop_token stop) { stop_of_thread = std::move(stop); }

bool wait_to_try_again(const FileError& error, size_t tries) {
  if (!may_pass(error.code()) || tries == patience().pauses.size()) return false;
  if (tries == 0) tell(error.what());
  return pause(patience().pauses[tries]);
}

}  // namespace sala
