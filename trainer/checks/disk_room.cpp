// Needs by file system, and their sum.
#include "trainer/checks/disk_room.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <map>

#include "trainer/checks/target_folder.h"
#include "trainer/recipe/amount_text.h"
#include "trainer/recipe/field_values.h"

namespace sala {

double DiskRoom::needed_bytes() const {
  double sum = 0;
  for (const DiskNeed& need : needs) sum += need.bytes;
  return sum;
}

std::string DiskRoom::sum_text() const {
  std::vector<std::string> terms;
  for (const DiskNeed& need : needs) {
    terms.push_back(
        fmt::format("{} {} ({})", bytes_text(need.bytes), need.what, shown(need.folder)));
  }
  return fmt::format("{}", fmt::join(terms, " + "));
}

std::vector<DiskRoom> disk_rooms(const std::vector<DiskNeed>& needs) {
  std::vector<DiskRoom> rooms;
  std::map<uint64_t, size_t> by_id;
  for (const DiskNeed& need : needs) {
    if (need.bytes <= 0) continue;
    const FileSystem there = file_system_of(need.folder);
    const auto [room, is_new] = by_id.try_emplace(there.id, rooms.size());
    if (is_new) rooms.push_back({{}, there.free_bytes});
    rooms[room->second].needs.push_back(need);
  }
  return rooms;
}

}  // namespace sala
