// Counter-based randomness behind data/shuffle.h.
#include "data/shuffle.h"

#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "data/hash.h"

namespace sala {

std::uint64_t counter_random(std::uint64_t key, std::uint64_t n) {
  std::uint64_t z = key + (n + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

std::uint64_t counter_random_below(std::uint64_t key, std::uint64_t n, std::uint64_t limit) {
  // High half of the product: the bias is limit / 2^64, far below anything we could notice.
  return static_cast<std::uint64_t>(
      (static_cast<unsigned __int128>(counter_random(key, n)) * limit) >> 64);
}

std::vector<std::uint32_t> epoch_order(std::uint64_t seed, std::string_view source,
                                       std::int64_t epoch, std::int64_t count) {
  if (count < 0 || count > std::int64_t{0xffffffff}) {
    throw std::runtime_error("source `" + std::string(source) + "` has " + std::to_string(count) +
                             " documents, at most 2^32 - 1 can be shuffled; split it in two");
  }
  const std::uint64_t key =
      counter_random(xxh3_64(source, seed), static_cast<std::uint64_t>(epoch));
  std::vector<std::uint32_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0u);
  for (std::uint64_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[counter_random_below(key, i, i)]);
  }
  return order;
}

}  // namespace sala
