// Named spans of work, for whoever watches: LibTorch's profiler, and tools that read NVTX (Nsight
// Systems). Without a watcher a range costs some tens of nanoseconds.
#pragma once

#include <ATen/record_function.h>

#ifdef SALA_CUDA
#include <nvtx3/nvToolsExt.h>
#endif

namespace sala {

// From here to the end of the scope; ranges nest. `name` lives as long as the program.
class Range {
 public:
  explicit Range(const char* name) : record_(at::RecordScope::USER_SCOPE) {
    if (record_.isActive()) record_.before(name);
#ifdef SALA_CUDA
    nvtxRangePushA(name);
#endif
  }
  ~Range() {
#ifdef SALA_CUDA
    nvtxRangePop();
#endif
  }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;

 private:
  at::RecordFunction record_;
};

}  // namespace sala
