// Disjoint intervals by their begin.
#include "data/teacher/index.h"

#include <algorithm>
#include <iterator>
#include <stdexcept>

namespace sala {

void TopkIndex::add(std::size_t part, std::size_t piece, const TokenRange& range) {
  const std::int64_t end = range.begin + range.count;
  for (std::int64_t at = range.begin; at < end;) {
    const auto next = places_.upper_bound(at);
    if (next != places_.begin()) {
      const Place& before = std::prev(next)->second;
      if (before.begin + before.count > at) {
        at = before.begin + before.count;
        continue;
      }
    }
    const std::int64_t stop = next == places_.end() ? end : std::min(end, next->first);
    places_.emplace(at, Place{part, piece, at, stop - at, at - range.begin});
    at = stop;
  }
}

bool TopkIndex::covers(std::int64_t begin, std::int64_t end) const {
  for (std::int64_t at = begin; at < end;) {
    const auto next = places_.upper_bound(at);
    if (next == places_.begin()) return false;
    const Place& place = std::prev(next)->second;
    if (place.begin + place.count <= at) return false;
    at = place.begin + place.count;
  }
  return true;
}

std::int64_t TopkIndex::num_tokens_before(std::int64_t end) const {
  std::int64_t count = 0;
  for (const auto& [begin, place] : places_) {
    if (begin >= end) break;
    count += std::min(place.count, end - begin);
  }
  return count;
}

std::vector<TopkIndex::Place> TopkIndex::places(std::int64_t begin, std::int64_t end) const {
  if (!covers(begin, end)) throw std::logic_error("teacher cache: tokens that it does not hold");
  std::vector<Place> found;
  for (std::int64_t at = begin; at < end;) {
    Place place = std::prev(places_.upper_bound(at))->second;
    const std::int64_t before = at - place.begin;
    place.skip += before;
    place.begin = at;
    place.count = std::min(place.count - before, end - at);
    at += place.count;
    found.push_back(place);
  }
  return found;
}

}  // namespace sala
