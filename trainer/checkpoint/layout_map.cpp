// Names, shapes and offsets compared.
#include "trainer/checkpoint/layout_map.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

namespace sala {
namespace {

using ByName = std::map<std::string, const Entry*>;

ByName by_name(const Layout& layout) {
  ByName entries;
  for (const Entry& entry : layout.entries) entries.emplace(entry.name, &entry);
  return entries;
}

std::string text_of(const Entry& entry) {
  return entry.name + " " + nlohmann::json(entry.shape).dump() + " at " +
         std::to_string(entry.offset);
}

}  // namespace

std::string layout_difference(const Layout& expected, const Layout& saved) {
  const ByName wanted = by_name(expected), have = by_name(saved);
  for (const Entry& entry : expected.entries) {
    const auto found = have.find(entry.name);
    if (found == have.end()) return "expected " + text_of(entry) + ", which was not saved";
    if (found->second->shape != entry.shape) {
      return "expected " + text_of(entry) + ", saved " + text_of(*found->second);
    }
  }
  for (const Entry& entry : saved.entries) {
    if (!wanted.contains(entry.name)) return "saved " + text_of(entry) + ", which is not expected";
  }
  return "";
}

bool same_places(const Layout& a, const Layout& b) {
  return a.num_elements == b.num_elements &&
         std::equal(a.entries.begin(), a.entries.end(), b.entries.begin(), b.entries.end(),
                    [](const Entry& x, const Entry& y) {
                      return x.name == y.name && x.shape == y.shape && x.offset == y.offset;
                    });
}

std::vector<Stretch> stretches(const Layout& saved, const Layout& wanted, int64_t begin,
                               int64_t end) {
  if (begin == end) return {};
  if (same_places(saved, wanted)) return {{begin, 0, end - begin}};
  const ByName have = by_name(saved);
  std::vector<Stretch> result;
  for (const Entry& entry : wanted.entries) {
    const int64_t first = std::max(begin, entry.offset);
    const int64_t last = std::min(end, entry.offset + entry.num_elements());
    if (first >= last) continue;
    const int64_t at = have.at(entry.name)->offset + (first - entry.offset);
    result.push_back({at, first - begin, last - first});
  }
  return result;
}

}  // namespace sala
