// What ranks check together before their first step: trainer/checks/preflight.h, that the data is
// whole, and where run.kernels asks for it that the device's kernels take the hybrid.
#pragma once

#include <string>
#include <vector>

#include "trainer/checks/preflight.h"
#include "trainer/run.h"

namespace sala {

// The first rank looks (preflight), so that thousands of stores are opened once and not once a
// rank; what it finds wrong is one SharedError on all. Warnings are its own. That the others see
// the same files is compared later (check_inputs).
void preflight_on_first(Recipe& recipe, World& world, const PreflightOptions& options,
                        std::vector<std::string>& warnings);
// What it plans for: this rank's device, with the memory of the smallest one of all.
CheckDevice smallest_device(World& world);

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
