// RUN/checkpoints on disk: what lies there, how a save gets its name, what goes when. Rank 0's
// work. Every call throws when the system refuses: a listing that failed must never look like an
// empty folder, for the run would begin anew and overwrite what is there.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "trainer/checkpoint/manifest.h"

namespace sala {

inline constexpr const char* kFrozenFolder = "frozen";

// `checkpoints`/<stage number>-<stage>-<step>, and its name while it is written.
std::string checkpoint_path(const std::string& checkpoints, const CheckpointId& id);
std::string writing_path(const std::string& checkpoint);

struct FoundCheckpoint {
  std::string folder;
  Manifest manifest;
};

struct CheckpointListing {
  std::vector<FoundCheckpoint> complete;  // oldest first; their tensors are not looked at
  std::vector<std::string> problems;      // folders that are none, one line each with the reason
  int64_t num_lost = 0;                   // of them, checkpoints that were complete once
};

// FileError when a folder or manifest cannot be read, which does not tell what it holds.
CheckpointListing list_checkpoints(const std::string& checkpoints);

// Of the last folder by name whose manifest can be read; its tensors are not looked at. For any
// rank: nothing is said of the others, and nothing refused.
std::optional<Manifest> newest_manifest(const std::string& checkpoints);

// What interrupted saves and deletions left: folders with nothing but our rank files in them.
void remove_leftovers(const std::string& checkpoints);
// Gives the finished folder its name; an older save of the same step goes.
void publish_checkpoint(const std::string& writing, const std::string& folder);
// After `saved` is complete: keeps every boundary and the newest `keep` others, and sets aside what
// `saved` has overtaken.
void retire_checkpoints(const std::string& checkpoints, const std::string& saved, int64_t keep);

}  // namespace sala
