// Export of a run's model: by the export stage, or by `sala-train RECIPE --export FOLDER` from a
// checkpoint.
#pragma once

#include <string>
#include <vector>

#include "trainer/run.h"

namespace sala {

// Rank 0 writes FOLDER (see trainer/folder/export.h) in the name of `maker`; all ranks throw when
// it cannot. The model card holds the recipe and the measured numbers. Returns what was done and
// who loads it, a line each, on rank 0.
std::vector<std::string> export_student(Run& run, const std::string& folder,
                                        const std::string& maker, int64_t max_shard_bytes);

// Who exports: this run, known by RUN/run_id, which is made at the first call (rank 0 only); or
// `--export` from a checkpoint.
std::string run_as_maker(const std::string& run_folder);
std::string run_as_maker_if_known(const std::string& run_folder);  // empty: no call before
std::string checkpoint_as_maker(const std::string& checkpoint);

}  // namespace sala
