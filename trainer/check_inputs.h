// What a run checks before its first step, so that nothing it will need in a later stage fails
// hours in.
#pragma once

#include "trainer/run.h"

namespace sala {

// Every token store (verify_stores.h; `verify_again`: also those known from before), the needle
// set, what stages ask of their data, and that no row or prompt is longer than the source model can
// say something about. Throws one error on all ranks; false when a signal asked to stop.
bool check_inputs(Run& run, bool verify_again);

}  // namespace sala
