// What a run checks before its first step beside trainer/checks/preflight.h: that the data is
// whole, and where run.kernels asks for it that the device's kernels take the hybrid.
#pragma once

#include "trainer/run.h"

namespace sala {

// That all ranks see the same source folder and needle set, then every token store
// (verify_stores.h; `verify_again`: also those known from before). Throws one error on all ranks;
// false when a signal asked to stop.
bool check_inputs(Run& run, bool verify_again);
// The first part alone: no store is read. A SharedError on all ranks.
void require_equal_files(Run& run);

// kernels: strict, on a GPU: a SharedError where a kernel of the hybrid's attention does not take
// its heads, or documents of dense_len tokens, on this device; not only when a stage comes to it.
void require_attention_kernels(Run& run, const ModelConfig& hybrid);

}  // namespace sala
