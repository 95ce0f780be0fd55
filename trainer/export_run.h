// Export of a run's hybrid: by the export stage, or by `sala-train RECIPE --export FOLDER` from a
// checkpoint.
#pragma once

#include <string>

#include "trainer/run.h"

namespace sala {

// Rank 0 writes FOLDER (see trainer/hf_folder.h); all ranks throw when it cannot. The model card
// holds the recipe and the measured numbers.
void export_student(Run& run, const std::string& folder, int64_t max_shard_bytes);

}  // namespace sala
