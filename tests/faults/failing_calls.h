// File calls that fail, for processes that a test starts while one of these lives: each rule names
// a call, a pattern for its path, which call is hit and how ("fsync */metrics.jsonl 2 EIO"). The
// rules are told in tests/faults/fail_calls.c, the library that is preloaded.
#pragma once

#include <cstdlib>
#include <string>

namespace sala::test {

class FailingCalls {
 public:
  explicit FailingCalls(const std::string& rules) {
    setenv("SALA_FAIL_CALLS", rules.c_str(), 1);
    setenv("LD_PRELOAD", SALA_FAIL_CALLS_LIBRARY, 1);
    setenv("ASAN_OPTIONS", "verify_asan_link_order=0", 0);  // it wants to be the first library
  }
  ~FailingCalls() {
    unsetenv("LD_PRELOAD");
    unsetenv("SALA_FAIL_CALLS");
  }
  FailingCalls(const FailingCalls&) = delete;
  FailingCalls& operator=(const FailingCalls&) = delete;
};

}  // namespace sala::test
