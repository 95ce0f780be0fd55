// Sizes into classes of buffers with the least memory.
#include "trainer/sharding/pool.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <set>

namespace sala {
namespace {

std::vector<std::vector<size_t>> with_lonely_parts(std::vector<std::vector<size_t>> units,
                                                   size_t num_parts) {
  std::vector<bool> seen(num_parts, false);
  for (const auto& unit : units) {
    for (size_t part : unit) seen[part] = true;
  }
  for (size_t part = 0; part < num_parts; ++part) {
    if (!seen[part]) units.push_back({part});
  }
  return units;
}

// The most parts of a size in [least, most] that two neighbouring units use.
int64_t most_in_flight(const std::vector<int64_t>& sizes,
                       const std::vector<std::vector<size_t>>& units, int64_t least, int64_t most) {
  int64_t result = 0;
  for (size_t u = 0; u < units.size(); ++u) {
    std::set<size_t> parts(units[u].begin(), units[u].end());
    if (u + 1 < units.size()) parts.insert(units[u + 1].begin(), units[u + 1].end());
    result = std::max<int64_t>(result, std::count_if(parts.begin(), parts.end(), [&](size_t part) {
                                 return least <= sizes[part] && sizes[part] <= most;
                               }));
  }
  return result;
}

}  // namespace

int64_t Pool::num_elements() const {
  int64_t sum = 0;
  for (const Class& c : classes) sum += c.num_elements * c.num_buffers;
  return sum;
}

Pool plan_pool(const std::vector<int64_t>& part_sizes,
               const std::vector<std::vector<size_t>>& part_units, bool held) {
  std::vector<int64_t> sizes = part_sizes;
  const auto units = with_lonely_parts(part_units, sizes.size());
  Pool pool;
  pool.class_of.assign(sizes.size(), -1);
  for (size_t part = 0; held && part < sizes.size(); ++part) {
    const auto uses = std::count_if(units.begin(), units.end(), [&](const auto& unit) {
      return std::find(unit.begin(), unit.end(), part) != unit.end();
    });
    if (uses < 2 || sizes[part] == 0) continue;
    pool.class_of[part] = static_cast<int64_t>(pool.classes.size());
    pool.classes.push_back({sizes[part], 1});
    sizes[part] = 0;
  }

  // The distinct sizes, largest first, cut into runs: best[i] is the least memory for the first i
  // of them, whose last run begins at from[i].
  std::set<int64_t, std::greater<>> distinct(sizes.begin(), sizes.end());
  distinct.erase(0);
  const std::vector<int64_t> rungs(distinct.begin(), distinct.end());
  std::vector<int64_t> best(rungs.size() + 1, std::numeric_limits<int64_t>::max());
  std::vector<size_t> from(rungs.size() + 1, 0);
  best[0] = 0;
  for (size_t end = 1; end <= rungs.size(); ++end) {
    for (size_t begin = 0; begin < end; ++begin) {
      const int64_t cost =
          best[begin] + rungs[begin] * most_in_flight(sizes, units, rungs[end - 1], rungs[begin]);
      if (cost >= best[end]) continue;
      best[end] = cost;
      from[end] = begin;
    }
  }
  for (size_t end = rungs.size(); end > 0; end = from[end]) {
    const int64_t most = rungs[from[end]], least = rungs[end - 1];
    for (size_t part = 0; part < sizes.size(); ++part) {
      if (least <= sizes[part] && sizes[part] <= most) {
        pool.class_of[part] = static_cast<int64_t>(pool.classes.size());
      }
    }
    pool.classes.push_back({most, most_in_flight(sizes, units, least, most)});
  }
  return pool;
}

}  // namespace sala
