// The rules in force, and what was told already.

#include "kernels/paths.h"

#include <c10/util/Exception.h>

#include <atomic>
#include <mutex>
#include <set>
#include <utility>

namespace sala {
namespace {

struct State {
  std::mutex mutex;
  PathRules rules;
  std::set<std::string> told;
  std::atomic<bool> deterministic = true;  // of the rules, for those who ask at every call
};

State& state() {
  static State state;
  return state;
}

void tell_once(const std::string& line, bool slow) {
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  if (!s.told.insert(line).second) return;
  if (s.rules.tell) {
    s.rules.tell(line, slow);
  } else if (slow) {
    TORCH_WARN(line);
  }
}

bool strict() {
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  return s.rules.strict;
}

}  // namespace

PathRules set_path_rules(PathRules rules) {
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  s.told.clear();
  s.deterministic = rules.deterministic;
  return std::exchange(s.rules, std::move(rules));
}

bool deterministic_paths() { return state().deterministic; }

bool kernels_run(const char* op, const std::string& lacking) {
  if (lacking.empty()) return true;
  TORCH_CHECK(!strict(), op, ": its kernels need ", lacking,
              "; kernels: strict refuses the composition of LibTorch calls that would run instead "
              "(kernels: auto takes it, many times slower)");
  tell_once(std::string(op) + ": its kernels need " + lacking +
                "; a composition of LibTorch calls, many times slower, runs instead",
            /*slow=*/true);
  return false;
}

void tell_way(const char* op, const std::string& way) {
  tell_once(std::string(op) + ": " + way, /*slow=*/false);
}

}  // namespace sala
