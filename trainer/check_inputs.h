// What a run checks before its first step, so that nothing it will need in a later stage fails
// hours in.
#pragma once

#include "trainer/rank_agreement.h"
#include "trainer/run.h"

namespace sala {

// Every token store (tokenizer, checksum; the files are shared out over the ranks), the needle set,
// and that no row or prompt is longer than the source model can say something about. Throws one
// error.
Facts check_inputs(const Run& run);

}  // namespace sala
