// Whether what a run will write fits where it goes: folders on one file system share its room.
#pragma once

#include <string>
#include <vector>

#include "trainer/stage.h"

namespace sala {

// A file system that will be written to.
struct DiskRoom {
  std::vector<DiskNeed> needs;  // at least one
  double free_bytes = 0;        // infinity where it does not tell

  double needed_bytes() const;
  std::string sum_text() const;  // "4 GB checkpoints inside stages (run/x) + 5 GB export (out)"
};

// One for each file system, in the order of the needs; needs of nothing are left out.
std::vector<DiskRoom> disk_rooms(const std::vector<DiskNeed>& needs);

}  // namespace sala
