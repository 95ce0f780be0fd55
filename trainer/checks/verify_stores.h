// Every token store of the recipe, before the first step: known from an earlier start, or read once
// as a whole and compared with its checksum.
#pragma once

#include <set>
#include <string>

#include "trainer/run.h"

namespace sala {

// Fills run.stores and RUN/stores/. Files that nobody has verified as they are now are shared out
// over the ranks that see them (nodes may hold copies of their own); `again`: all files are read.
// Throws one error on all ranks: a store that is damaged, of another tokenizer, or not the same on
// all ranks. False when a signal asked to stop: what was verified until then is remembered.
bool verify_stores(Run& run, bool again);
// The stores of these sources alone, for what is no run: RUN/stores/ is read, where there is one,
// and nothing is written.
bool verify_stores_of(Run& run, const std::set<std::string>& sources, bool again);

}  // namespace sala
