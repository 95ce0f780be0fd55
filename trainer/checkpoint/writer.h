// One rank's part in writing a checkpoint, in a thread of its own: hashes a snapshot's elements and
// writes them into rank-NNNNN.h5, frozen ones into the run's frozen folder. Calls neither MPI nor a
// GPU. Rank 0 makes the manifest of the reports of all ranks.
#pragma once

#include <atomic>
#include <set>
#include <string>
#include <vector>

#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/snapshot.h"

namespace sala {

struct WriterPlace {
  int rank = 0;
  std::string folder;         // of the checkpoint in the making
  std::string frozen_folder;  // where frozen tensors go
  std::string frozen_prefix;  // the same as seen from the finished checkpoint
};

// Returns when this rank's files are durable: its report. `sound_frozen`: files in the frozen
// folder that this process knows to be right; what it writes or checks is added. Throws the first
// error, and where `given_up` is set from outside; no file of this rank is left then.
nlohmann::json write_snapshot(const Snapshot& snapshot, const WriterPlace& place,
                              std::set<std::string>& sound_frozen,
                              const std::atomic<bool>& given_up);

// From the reports of all ranks, by rank; `snapshot` is rank 0's. Throws when ranks handed over
// different tensors, or other values in whole ones (they no longer train one model, and a
// checkpoint of shares of each would be no model), or ranges that do not cover a tensor once.
Manifest assemble(const Snapshot& snapshot, const std::vector<nlohmann::json>& reports);

}  // namespace sala
