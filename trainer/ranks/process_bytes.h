// What this process has read and written so far, by the kernel's count: work on files that the main
// thread does without a word moves by it.
#pragma once

#include <cstdint>

namespace sala {

class ProcessBytes {
 public:
  ProcessBytes() = default;
  ~ProcessBytes();
  ProcessBytes(const ProcessBytes&) = delete;
  ProcessBytes& operator=(const ProcessBytes&) = delete;

  int64_t now();  // without what asking takes; 0 where the kernel does not tell. By one thread.

 private:
  int file_ = -1;      // of the process that asks first
  int64_t asked_ = 0;  // bytes
};

}  // namespace sala
