// Counter-based randomness behind data/shuffle.h.
#include "data/shuffle.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "data/files/hash.h"

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

EpochOrder::EpochOrder(std::uint64_t seed, std::string_view source, std::int64_t epoch,
                       std::int64_t count)
    : count_(static_cast<std::uint64_t>(count)),
      half_bits_(std::max(1, (static_cast<int>(std::bit_width(count_ - 1)) + 1) / 2)) {
  const std::uint64_t key =
      counter_random(xxh3_64(source, seed), static_cast<std::uint64_t>(epoch));
  for (int round = 0; round < kRounds; ++round) {
    keys_[round] = counter_random(key, static_cast<std::uint64_t>(round));
  }
}

std::int64_t EpochOrder::document(std::int64_t position) const {
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  auto value = static_cast<std::uint64_t>(position);
  do {
    std::uint64_t left = value >> half_bits_, right = value & mask;
    for (const std::uint64_t key : keys_) {
      left ^= counter_random(key, right) & mask;
      std::swap(left, right);
    }
    value = left << half_bits_ | right;
  } while (value >= count_);
  return static_cast<std::int64_t>(value);
}

}  // namespace sala
