// What a run checks before its first step beside trainer/preflight.h: that the data is whole.
#pragma once

#include "trainer/run.h"

namespace sala {

// Every token store (tokenizer, checksum; the files are shared out over the ranks). Throws one
// error.
void check_inputs(const Run& run);

}  // namespace sala
